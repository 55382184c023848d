"""A worker carries arrays bit for bit, and whatever happens to it is one line in the parent."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt_verify.engines.tensorflow import start
from gpt_verify.errors import CheckpointError, MissingDependency, PortError
from gpt_verify.process.wire import Frame, encode, receive
from gpt_verify.process.worker import Worker, one_line


@pytest.fixture(scope="module")
def worker():
    with Worker("worker_child", label="the child") as worker:
        yield worker


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "<i4", ">i8", "f2", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_arrays_come_back_bit_for_bit(worker, dtype, shape):
    bits = np.random.default_rng(0).integers(0, 2, (*shape, np.dtype(dtype).itemsize), np.uint8)
    sent = np.frombuffer(bits.tobytes(), dtype).reshape(shape)
    (back,) = worker.call("echo", sent).arrays
    assert (back.shape, back.dtype) == (shape, np.dtype(dtype).newbyteorder("<"))
    assert back.tobytes() == sent.astype(back.dtype).tobytes()


def test_nan_payloads_and_strides_survive(worker):
    nan = np.array([0x7FC01234, 0xFFFFFFFF, 0x80000000], np.uint32).view(np.float32)
    strided = np.arange(60, dtype=np.float64).reshape(3, 4, 5)[::-1, 1:3, ::2]
    first, second = worker.call("echo", nan, strided).arrays
    assert first.tobytes() == nan.tobytes()
    assert np.array_equal(second, strided)


def test_contiguous_arrays_are_sent_from_their_own_memory():
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    _header, payload = encode(Frame("item", 1, {}, (array,)))
    assert np.shares_memory(np.frombuffer(payload, np.uint8), array)


def test_fields_come_back(worker):
    fields = {"name": "h0/attn/c_attn/w", "numbers": [1, 2.5, None], "text": "ü\n"}
    assert worker.call("echo", **fields).fields == fields


def test_large_answers_are_streamed(worker):
    for i, frame in enumerate(worker.stream("count", n=4, megabytes=8)):
        assert frame.fields == {"i": i}
        assert frame.arrays[0].nbytes == 8 << 20
        assert (frame.arrays[0] == i).all()
    assert i == 3


def test_an_abandoned_answer_is_skipped(worker):
    old = worker.stream("count", n=5, megabytes=1)
    next(old)
    assert worker.call("echo", value=7).fields == {"value": 7}
    with pytest.raises(PortError, match="given up"):
        next(old)
    assert worker.call("echo", value=8).fields == {"value": 8}


def test_what_libraries_print_does_not_reach_the_frames(worker):
    # Nor do they reach the requests: their stdin is empty.
    assert worker.call("chatter").fields == {"stdin": ""}
    assert worker.call("echo", value=1).fields == {"value": 1}


def test_errors_are_one_line_of_the_class_that_was_raised(worker):
    with pytest.raises(CheckpointError, match=r"^two lines$"):
        worker.call("fail", kind="checkpoint")
    with pytest.raises(PortError, match=r"^ValueError: two lines$"):
        worker.call("fail", kind="value")
    with pytest.raises(PortError, match=r"^KeyError: 'no such command'$"):
        worker.call("no such command")
    with pytest.raises(PortError, match="cannot be sent"):
        worker.call("unsendable")
    assert worker.call("echo", value=1).fields == {"value": 1}


def test_objects_are_never_sent(worker):
    with pytest.raises(ValueError, match="object cannot be sent"):
        worker.call("echo", np.array([{}], object))
    assert worker.call("echo", value=1).fields == {"value": 1}


def test_a_death_quotes_the_last_words():
    with Worker("worker_child", label="the child", error=CheckpointError) as worker:
        with pytest.raises(
            CheckpointError,
            match=r"^the child died with exit status 3; it last said: last words$",
        ):
            worker.call("leave")
        with pytest.raises(CheckpointError, match=r"^the child is closed$"):
            worker.call("echo")


def test_a_killed_child_is_named():
    with (
        Worker("worker_child") as worker,
        pytest.raises(PortError, match=r"^the worker died of SIGKILL \(out of memory\?\)"),
    ):
        worker.call("killed")


def test_a_module_that_does_not_exist():
    with (
        Worker("no_such_module") as worker,
        pytest.raises(PortError, match=r"died with exit status 1; it last said: .*no_such_module"),
    ):
        worker.call("echo")


def test_a_hanging_child_is_killed():
    with Worker("worker_child", timeout=1) as worker:
        with pytest.raises(PortError, match=r"^the worker gave no answer within 1 s"):
            worker.call("hang")
        assert not alive(worker.pid)


def test_close_may_be_called_again_and_leaves_no_process():
    worker = Worker("worker_child")
    worker.call("echo")
    worker.close()
    worker.close()
    assert not alive(worker.pid)


def test_a_forgotten_worker_ends():
    worker = Worker("worker_child")
    pid = worker.pid
    del worker
    assert ends(pid)


@pytest.mark.parametrize("command", ["echo", "hang"])
def test_the_child_dies_with_its_parent(command):
    parent = f"""
import os, sys
sys.path[:] = {sys.path!r}
from gpt_verify.engines.tensorflow import start
from gpt_verify.process.worker import Worker
worker = Worker("worker_child")
worker.call("echo")
worker.stream({command!r})
print(worker.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    out = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=False).stdout
    assert ends(int(out))


def test_a_module_in_the_current_directory_hides_none(tmp_path, monkeypatch):
    for name in ("json", "numpy", "verify"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    monkeypatch.chdir(tmp_path)
    with Worker("worker_child") as worker:
        assert worker.call("echo", value=1).fields == {"value": 1}


@pytest.mark.parametrize(
    ("garbage", "error"),
    [(b"", EOFError), (b"gvf1\x05", EOFError), (b"Warning: hello", ValueError)],
)
def test_what_is_no_frame_is_refused(garbage, error):
    with pytest.raises(error):
        receive(io.BytesIO(garbage))


def test_messages_are_short_and_on_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(ValueError("x" * 10_000))) < 500


def test_without_tensorflow_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("gpt_verify.engines.tensorflow.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install '.\[tensorflow\]'"):
        start()


def test_the_main_process_imports_no_framework():
    script = """
import sys
import gpt_verify.checkpoint.synthetic, gpt_verify.ports.openai_tf
assert not {"tensorflow", "torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert "tensorflow" not in sys.modules
