"""TensorFlow, always in a process of its own.

`start` begins that process; the other modules are its inside, and the main process imports none of
them (nor TensorFlow, ever):

graph.py     the published architecture as a TensorFlow 1 graph
training.py  its loss and derivatives
cache.py     decoding with it
meta.py      the forward graph that a checkpoint's ``.meta`` may hold
messages.py  what it says in a page, in a line
worker.py    the commands; run as ``python -m gpt_verify.engines.tensorflow.worker``
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from gpt_verify.errors import GptVerifyError, MissingDependency, PortError, install
from gpt_verify.process.worker import Worker

#: The model that a process is asked about where none is named.
ORIGINAL = "original"
#: Warnings that TensorFlow prints at every start are no news.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # glibc gives each large array back to the system and faults its pages in anew for the next
    # one; a process that casts one block after another spends much of its time on that.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # glibc takes no more
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def start(
    *, error: type[GptVerifyError] = PortError, device: str = "cpu", timeout: float = 1800.0
) -> Worker:
    """Start a TensorFlow process (about 3 s of import, paid by its first answer).

    Args:
        error: the class of what goes wrong inside.
        device: ``cpu``, or ``cuda`` where TensorFlow may see the GPU.
        timeout: seconds that one answer may take.

    Raises:
        MissingDependency: TensorFlow is not installed.
    """
    if find_spec("tensorflow") is None:
        raise MissingDependency(f"TensorFlow is not installed: {install('tensorflow')}")
    if _started_early and (error, device) == (PortError, "cpu"):
        return _started_early.pop()
    return Worker(
        "gpt_verify.engines.tensorflow.worker",
        label="the TensorFlow process",
        error=error,
        timeout=timeout,
        environment=_ENVIRONMENT | ({} if device == "cuda" else _NO_GPU),
    )


_started_early: list[Worker] = []


@contextmanager
def started_early(wanted: bool) -> Iterator[None]:
    """A process imports TensorFlow meanwhile, while another port is being judged.

    The first `start` for the CPU takes it. If nobody does, it is ended.
    """
    if wanted and find_spec("tensorflow") is not None:
        _started_early.append(start())
    try:
        yield
    finally:
        while _started_early:
            _started_early.pop().close()
