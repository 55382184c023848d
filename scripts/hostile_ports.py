"""Hostile programs and servers as ports: each is judged or refused, and nothing is left of it.

    python scripts/hostile_ports.py --json docs/results/hostile-ports.json

Every kind below is run several times; each answers a few questions as it should, with zeros, and
then does what it does. What is asked of ``gpt-verify run`` on every one of them:

- status 1 or 2, and with status 2 one line of text on standard error;
- an end within ``LONGEST`` seconds, where an answer may take ``TIMEOUT``;
- no more memory than a port takes that answers, and twice what an answer may be long;
- no file left in the temporary directory, and none of the port's processes.

The exit status is 1 where one of them does otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hostile import LONGEST, complaints

from gpt_verify.checkpoint.synthetic import resolve_size, synthesize
from gpt_verify.judging.run import environment
from gpt_verify.ports.remote.protocol import largest

#: Seconds that one answer may take.
TIMEOUT = 3
SIZE = "11,7,8,2,2"
#: Names it, in the environment of everything that it starts.
MARK = "HOSTILE_PORT"

PORTS = """
import os, shlex, sys
from gpt_verify.ports.remote.http import HttpPort
from gpt_verify.ports.remote.process import ProcessPort

def program(checkpoint):
    words = [sys.executable, "-S", os.environ["CHILD"], os.environ["KIND"], os.environ["FIRST"]]
    return ProcessPort(shlex.join(words), checkpoint, "child", timeout={timeout})

def server(checkpoint):
    return HttpPort(os.environ["URL"], timeout={timeout}, vocabulary=checkpoint.config.n_vocab)
"""

#: A program: what it does at the question that it does not answer.
CHILD = r"""
import json, os, signal, subprocess, sys, time
kind, first = sys.argv[1], int(sys.argv[2])
out = sys.stdout.buffer

def say(data):
    out.write(data if isinstance(data, bytes) else data.encode())
    out.flush()

def answer(line, value=0.0):
    tokens = json.loads(line)["tokens"]
    return json.dumps({"logits": [[[value] * 11 for _ in row] for row in tokens]}) + "\n"

def sleeper(**more):
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], **more)

def drip(data):
    for i in range(len(data)):
        say(data[i : i + 1])
        time.sleep(0.5)

def endless(data, stream=out):
    while True:
        stream.write(data)
        stream.flush()

def npy(header, body=b""):
    header = header.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body

KINDS = {
    "exits": lambda line: os._exit(3),
    "exits with 0": lambda line: os._exit(0),
    "is killed": lambda line: os.kill(os.getpid(), signal.SIGKILL),
    "aborts": lambda line: os.abort(),
    "hangs": lambda line: time.sleep(600),
    "hangs and ignores SIGTERM": lambda line: (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(600)),
    "stops itself": lambda line: os.kill(os.getpid(), signal.SIGSTOP),
    "closes its output": lambda line: (os.close(1), time.sleep(600)),
    "garbage": lambda line: say("hello\n"),
    "binary": lambda line: say(os.urandom(4000) + b"\n"),
    "escape codes": lambda line: say("\x1b[2J\x1b]0;title\x07\n"),
    "half an answer": lambda line: (say(answer(line)[:20]), os._exit(0)),
    "half an answer, and hangs": lambda line: (say(answer(line)[:20]), time.sleep(600)),
    "drop by drop": lambda line: drip(answer(line).encode()),
    "a line without end": lambda line: endless(b"[" * 65536),
    "errors without end": lambda line: endless(b"x" * 65536, sys.stderr.buffer),
    "lines without end": lambda line: endless(b"{}\n" * 20000),
    "not finite": lambda line: say(answer(line, float("nan"))),
    "huge numbers": lambda line: say(answer(line, 10**400)),
    "words for numbers": lambda line: say(answer(line, "x" * 1000)),
    "ragged": lambda line: say('{"logits": [[[1, 2], [3]]]}\n'),
    "another shape": lambda line: say('{"logits": [[[1, 2]]]}\n'),
    "nested deeply": lambda line: say('{"logits": ' + "[" * 100000 + "]" * 100000 + "}\n"),
    "a key twice": lambda line: say('{"logits": [[[1]]], "logits": [[[2]]]}\n'),
    "a long refusal": lambda line: say(json.dumps({"error": "no\n" * 100000}) + "\n"),
    "an npy of objects": lambda line: say(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n")),
    "an npy of terabytes": lambda line: say(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }\n")),
    "an npy that runs code": lambda line: say(npy("__import__('os').system('touch /tmp/hostile')\n")),
    "answers twice": lambda line: say(answer(line) * 2),
    "a grandchild holds its output": lambda line: (sleeper(), os._exit(0)),
    "a grandchild in a session of its own": lambda line: (sleeper(start_new_session=True), say(answer(line))),
    "many grandchildren": lambda line: ([sleeper(start_new_session=i % 2 == 0) for i in range(20)], os._exit(0)),
    "leaves the group": lambda line: (os.setpgid(0, 0) if os.getpid() != os.getsid(0) else None, time.sleep(600)),
}
for number, line in enumerate(sys.stdin):
    if number < first:
        say(answer(line))
    else:
        KINDS[kind](line)
"""  # noqa: E501  # a line a kind

#: A server: what it sends at the question that it does not answer, in pieces; a number is a pause.
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MOVED, EMPTY = b"HTTP/1.1 302 Found\r\nLocation: ", b"\r\nContent-Length: 0\r\n\r\n"
SERVERS: dict[str, list[bytes | float]] = {
    "closes": [],
    "garbage": [b"hello\r\n\r\n"],
    "binary": [bytes(range(256)) * 100],
    "no answer": [600.0],
    "headers drop by drop": [piece for _ in range(200) for piece in (b"X: y\r\n", 0.5)],
    "headers without end": [OK] + [b"X: " + b"y" * 60000 + b"\r\n"] * 10000,
    "100 Continue without end": [b"HTTP/1.1 100 Continue\r\n\r\n"] * 100000,
    "a body that stops": [OK + b"Content-Length: 1000\r\n\r\n{", 600.0],
    "a body of terabytes": [
        OK + b"Content-Length: 9999999999999\r\n\r\n["
    ] + [b"1," * 30000] * 9999,
    "a negative length": [OK + b"Content-Length: -1\r\n\r\n"] + [b"1" * 60000] * 9999,
    "chunks without end": [CHUNKED] + [b"1000\r\n" + b"1" * 4096 + b"\r\n"] * 99999,
    "a chunk of terabytes": [CHUNKED + b"ffffffffffff\r\n"] + [b"1" * 60000] * 9999,
    "another host": [MOVED + b"http://192.0.2.1/" + EMPTY],
    "itself again": [MOVED + b"/again" + EMPTY],
    "a file": [MOVED + b"file:///etc/passwd" + EMPTY],
    "an error page": [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 300000\r\n\r\n" + b"<p>\x1b[2J" * 50000
    ],
    "no JSON": [OK + b"Content-Length: 5\r\n\r\nhello"],
    "deep JSON": [OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 100000 + b"]" * 100000],
    "compressed": [OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00"],
}  # fmt: skip


@dataclass
class Outcome:
    """What came of one port.

    Attributes:
        form: ``program`` or ``server``.
        kind: what it does.
        first: how many questions it answers before.
        status: of the command; None where it was ended for taking too long.
        line: the last line of standard error.
        seconds: how long it took.
        megabytes: the most that one of the command's processes had resident.
        wrong: what was not as it should be; empty where all was.
    """

    form: str
    kind: str
    first: int
    status: int | None
    line: str
    seconds: float
    megabytes: float
    wrong: list[str]


@contextmanager
def listening(kind: str, first: int) -> Iterator[str]:
    """The address of such a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        count = iter(range(10**9))

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                question = asked(connection)
                if next(count) < first:
                    rows = json.loads(question)["tokens"]
                    body = json.dumps({"logits": [[[0.0] * 11 for _ in row] for row in rows]})
                    head = OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
                    connection.sendall(head + body.encode())
                    return
                for piece in SERVERS[kind]:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def asked(connection: socket.socket) -> bytes:
    """The body of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return body


def run(
    form: str, where: Path, mark: str, **more: str
) -> tuple[int | None, str, float, float, list[str]]:
    """Status, standard error, seconds, megabytes, and what was left behind."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "gpt_verify", "run", "--quiet", "--length", "3"]
        words += ["--checkpoint", str(where / "model"), "--port", f"{where / 'ports.py'}:{form}"]
        surroundings = {**os.environ, **more, MARK: mark, "TMPDIR": scratch}
        start, most, status = time.monotonic(), 0.0, None
        with (where / "stderr").open("w+") as errors:
            ran = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=errors, env=surroundings
            )
            while status is None and time.monotonic() < start + LONGEST:
                most = max(most, resident(mark, where / "child.py"))
                with suppress(subprocess.TimeoutExpired):
                    status = ran.wait(0.05)
            seconds = time.monotonic() - start
            if status is None:
                ran.kill()
                ran.wait()
            errors.seek(0)
            text = errors.read()
        time.sleep(0.2)  # what is ended is gone a moment later
        behind = [f"left {path.name}" for path in Path(scratch).iterdir()]
        if left := marked(mark):
            behind.append(f"left {len(left)} processes")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        return status, text, seconds, most, behind


def marked(mark: str) -> list[int]:
    """The processes with this mark that still run."""
    found, sign = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if sign in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def resident(mark: str, child: Path) -> float:
    """The largest of the command's own processes, in megabytes."""
    most = 0.0
    for pid in marked(mark):
        with suppress(OSError, StopIteration):
            entry = Path(f"/proc/{pid}")
            if str(child).encode() in (entry / "cmdline").read_bytes():
                continue
            lines = (entry / "status").read_text().splitlines()
            size = next(line for line in lines if line.startswith("VmHWM"))
            most = max(most, int(size.split()[1]) / 1024)
    return most


def judged(form: str, kind: str, first: int, allowed: float, made: Any) -> Outcome:
    """What is wrong with how the command ended."""
    status, text, seconds, megabytes, wrong = made
    wrong += complaints(status, text, megabytes, (1, 2), allowed)
    lines = text.splitlines()
    last = lines[-1][:300] if lines else ""
    return Outcome(form, kind, first, status, last, round(seconds, 2), round(megabytes), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, nargs="+", default=[0, 6], help="answers before")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        synthesize(where / "model", resolve_size(SIZE), 1, format="huggingface")
        (where / "ports.py").write_text(PORTS.replace("{timeout}", str(TIMEOUT)))
        (where / "child.py").write_text(CHILD)
        kinds = [line.split('"')[1] for line in CHILD.splitlines() if line.startswith('    "')]
        todo = [("program", kind, n) for kind in kinds for n in arguments.first]
        todo += [("server", kind, n) for kind in SERVERS for n in arguments.first]
        base = 0.0
        for number, (form, kind, first) in enumerate([("program", "exits", 10**6), *todo]):
            child = {"CHILD": str(where / "child.py"), "KIND": kind, "FIRST": str(first)}
            if form == "program":
                made = run(form, where, str(number), **child)
            else:
                with listening(kind, first) as url:
                    made = run(form, where, str(number), URL=url)
            if number == 0:
                # One that answers every question: of another run a little more or less.
                base = made[3] + 16 + 2 * largest(np.zeros((4, 7), np.int64), 11) / 2**20
                assert (made[0], made[4]) == (1, []), f"zeros: {made}"
                continue
            outcomes.append(judged(form, kind, first, base, made))
            if outcomes[-1].wrong:
                print(outcomes[-1], flush=True)
    counts = Counter(f"status {o.status}" for o in outcomes if not o.wrong)
    counts["otherwise"] = sum(bool(o.wrong) for o in outcomes)
    slowest = max(o.seconds for o in outcomes)
    print(f"{len(outcomes)} ports: {dict(counts)}, the slowest in {slowest:.1f} s")
    if arguments.json:
        report: dict[str, Any] = {"counts": dict(counts), "slowest_s": slowest}
        report |= {"timeout_s": TIMEOUT, "environment": environment()}
        report["outcomes"] = [asdict(o) for o in outcomes]
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if counts["otherwise"] else 0)


if __name__ == "__main__":
    main()
