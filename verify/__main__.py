"""``python -m gpt_verify`` is ``gpt-verify``."""

from gpt_verify.command.cli import entry

if __name__ == "__main__":
    entry()
