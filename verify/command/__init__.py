"""The command ``gpt-verify``. Nothing else imports this."""
