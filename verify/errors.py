"""Everything that stops a run before it can judge.

    GptVerifyError
    ├── CheckpointError      the checkpoint is missing, damaged, incomplete or not a GPT-2
    ├── PortError            the port could not be built, or broke while it ran
    │   └── Refused          the port answered that it does not take the question
    ├── ReferenceChanged     a port has changed what it is judged by
    ├── ToolError            this package could not undo what it did to a port
    ├── MissingDependency    an optional framework is not installed
    └── UsageError           the request itself makes no sense

Each message is one line that says what is wrong and where. The command prints it and exits with
status 2. A port that runs but is *wrong* is no error: that is a finding, and exit status 1.
"""

import os
import sysconfig
import traceback

#: Where Python, what is installed, and this package are.
_INSTALLED = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    os.path.dirname(__file__),
    os.path.dirname(os.path.realpath(__file__)),
)


class GptVerifyError(Exception):
    """Base of everything that this package raises on purpose."""


class CheckpointError(GptVerifyError):
    """The checkpoint is missing, damaged, incomplete, or not that of a GPT-2."""


class PortError(GptVerifyError):
    """A port factory raised, returned something that is no port, or the port broke in use."""


class Refused(PortError):
    """The port, a program or a server, answered that it does not take the question. On an input
    that every GPT-2 takes that is a finding."""


class ReferenceChanged(GptVerifyError):
    """Something of this process that the reference is made of is no longer what it was."""


class ToolError(GptVerifyError):
    """This package could not undo what it did to a port: a mistake of its own, no finding."""


class MissingDependency(GptVerifyError):
    """A framework that was asked for is not installed."""


class UsageError(GptVerifyError):
    """The request makes no sense: an unknown port, conflicting options, an impossible length."""


#: Characters of what others say that are passed on: a sentence, and not a page.
LONGEST = 400
#: The same of an error of ours, which quotes them and names files.
LONGEST_REFUSAL = 1000


def install(extra: str) -> str:
    """How an extra of this package is installed, which is on no index: from where its files are."""
    return f"in a clone of gpt-verify: pip install '.[{extra}]'"


def shortened(text: object, longest: int = LONGEST) -> str:
    """Somebody else's words as one printable line of a few hundred characters."""
    words = text[: 64 * longest] if isinstance(text, str) else _text_of(text)
    line = " ".join(words.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[: longest + 1])
    return line if len(line) <= longest else f"{line[:longest]} …"


def described(error: BaseException, longest: int = LONGEST) -> str:
    """Type of an exception, and the first line of what it says; of any exception whatever."""
    return _described(error, longest, lines=1)


def _described(error: BaseException, longest: int, lines: int | None) -> str:
    name = shortened(type(error).__name__, 100)
    try:
        text = str(error)
    except Exception as worse:  # a class of the port, whose message is code that may fail
        return f"{name} (whose message cannot be made: {type(worse).__name__})"
    first = shortened(" ".join(text[: 64 * longest].strip().splitlines()[:lines]), longest)
    return f"{name}: {first}" if first else name


def located(error: BaseException) -> str:
    """All that it says, because the cause of what ``load_state_dict`` or Keras raises stands below
    the first line; and the innermost line of somebody's own code that it came through, as
    ``(my_port.py:35)``."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *_INSTALLED))
    ]
    where = f" ({os.path.relpath(own[-1].filename)}:{own[-1].lineno})" if own else ""
    return _described(error, LONGEST_REFUSAL, lines=None) + where


def _text_of(thing: object) -> str:
    try:
        return str(thing)
    except Exception as worse:
        return f"{type(thing).__name__} (which cannot be shown: {type(worse).__name__})"
