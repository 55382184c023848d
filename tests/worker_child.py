"""A child for ``test_worker.py``: one command for each thing that can happen to a worker."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from gpt_verify.errors import CheckpointError
from gpt_verify.process.worker import serve


def echo(*arrays, **fields):
    return [(fields, arrays)]


def count(n, megabytes=0):
    for i in range(n):
        yield {"i": i}, [np.full(megabytes << 20, i, np.uint8)]


def chatter():
    print("print")
    os.write(1, b"write\n")
    sys.__stdout__.write("flushed later\n")
    subprocess.run(["echo", "from a grandchild"], check=True)
    return [({"stdin": sys.stdin.read()}, [])]


def fail(kind):
    raise {"checkpoint": CheckpointError, "value": ValueError}[kind]("two\nlines")


def unsendable():
    yield {}, [np.array(["text"])]


def leave():
    print("first line", file=sys.stderr)
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


serve(
    {
        command.__name__: command
        for command in (echo, count, chatter, fail, unsendable, leave, killed, hang)
    }
)
