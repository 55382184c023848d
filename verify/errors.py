"""Everything that stops a run before it can judge.

    GptVerifyError
    ├── CheckpointError      the checkpoint is missing, damaged, incomplete or not a GPT-2
    ├── PortError            the port could not be built, or broke while it ran
    ├── ToolError            this package could not undo what it did to a port
    ├── MissingDependency    an optional framework is not installed
    └── UsageError           the request itself makes no sense

Each message is one line that says what is wrong and where. The command prints it and exits with
status 2. A port that runs but is *wrong* is no error: that is a finding, and exit status 1.
"""


class GptVerifyError(Exception):
    """Base of everything that this package raises on purpose."""


class CheckpointError(GptVerifyError):
    """The checkpoint is missing, damaged, incomplete, or not that of a GPT-2."""


class PortError(GptVerifyError):
    """A port factory raised, returned something that is no port, or the port broke in use."""


class ToolError(GptVerifyError):
    """This package could not undo what it did to a port: a mistake of its own, no finding."""


class MissingDependency(GptVerifyError):
    """A framework that was asked for is not installed."""


class UsageError(GptVerifyError):
    """The request makes no sense: an unknown port, conflicting options, an impossible length."""
