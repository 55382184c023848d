"""Ports in other processes: programs and servers, right ones, wrong ones and dying ones."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONFIG, checkpoint, judged
from rounding import Noise, reference_run

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.errors import PortError, UsageError
from gpt_verify.findings import PortReport, Status, Verdict
from gpt_verify.inputs import seeded
from gpt_verify.judging.judge import judge
from gpt_verify.judging.run import Options, Silent, run
from gpt_verify.port import Port
from gpt_verify.ports.registry import build
from gpt_verify.ports.remote.http import HttpPort
from gpt_verify.ports.remote.process import ProcessPort
from gpt_verify.ports.remote.protocol import Refused, largest
from gpt_verify.reference.model import logits as reference_logits

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENS = np.array([[5, 9, 2], [1, 1, 7]])


def program(body: str) -> str:
    """A command that runs a few lines of Python, in which ``line`` is the question."""
    loop = "import sys, json\nfor line in sys.stdin:\n" + "".join(
        f"    {text}\n" for text in body.splitlines()
    )
    return f"{shlex.quote(sys.executable)} -S -c {shlex.quote(loop)}"


@contextmanager
def process(body: str, timeout: float = 30.0) -> Iterator[ProcessPort]:
    port = ProcessPort(program(body), checkpoint(), "child", timeout=timeout)
    try:
        yield port
    finally:
        port.close()


ECHO = """\
tokens = json.loads(line)["tokens"]
print(json.dumps({"logits": [[[t, t / 2] for t in row] for row in tokens]}), flush=True)"""


class TestProcess:
    def test_one_program_answers_many_questions(self) -> None:
        with process(
            "count = globals().get('count', 0) + 1\n" + ECHO.replace("t / 2", "count")
        ) as p:
            for count in (1, 2, 3):
                got = p.logits(TOKENS)
                assert np.array_equal(got[..., 0], TOKENS)
                assert (got[..., 1] == count).all()

    def test_npy(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).normal(size=(2, 3, 4))
        for dtype, order in (("<f4", "C"), (">f4", "C"), ("<f8", "F"), ("<f2", "C")):
            stored = np.asarray(values, dtype, order=order)  # type: ignore[call-overload]
            np.save(tmp_path / "logits.npy", stored)
            body = f"sys.stdout.buffer.write(open({str(tmp_path / 'logits.npy')!r}, 'rb').read())"
            with process(body + "\nsys.stdout.flush()") as p:
                for _ in range(2):
                    got = p.logits(TOKENS)
                    assert got.dtype == np.dtype(dtype).newbyteorder("=")
                    assert np.array_equal(got, stored)

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("sys.exit(3)", "the program ended with exit status 3"),
            ("print('no memory', file=sys.stderr); sys.exit(1)", "it last said: no memory"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
            ("print('hello', flush=True)", "answered 'hello', which is no JSON"),
            ("print('{}', flush=True)", 'should be {"logits": …}'),
            ("print('[1]', flush=True)", 'should be {"logits": …}'),
            ("print('{\"logits\": [[1], [1, 2]]}', flush=True)", "no array of numbers"),
            ("sys.stdout.buffer.write(b'\\x93NUMPX\\x01\\x00'); sys.stdout.flush()", "no .npy"),
            (
                "sys.stdout.buffer.write(b'\\x93NUMPY\\x01\\x00\\x02\\x00{}'); sys.stdout.flush()",
                "unreadable header",
            ),
            ("sys.stdout.buffer.write(b'\\x93NUM'); sys.exit(0)", "ended with exit status 0"),
            ("import os, time; os.close(1); time.sleep(600)", "the program closed its output"),
        ],
    )
    def test_what_is_no_answer(self, body: str, words: str) -> None:
        with process(body) as p, pytest.raises(PortError, match="child") as error:
            p.logits(TOKENS)
        assert words in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("shape", "words"),
        [
            ("(-1, -1, 3)", "float32[-1, -1, 3], should be a float array [B, T, V]"),
            ("(-1, 5, 3)", "[-1, 5, 3], should be a float array [B, T, V]"),
            ("(-1, 0, 3)", "[-1, 0, 3], should be a float array [B, T, V]"),
            ("(2, 3)", "[2, 3], should be a float array [B, T, V]"),
            ("(1099511627776, 5, 3)", "an array of 65970697666560 bytes, more than "),
        ],
    )
    def test_a_shape_that_no_array_has(self, shape: str, words: str) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n"
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
        body = f"sys.stdout.buffer.write({start + bytes(60)!r}); sys.stdout.flush()"
        with process(body) as p, pytest.raises(PortError) as error:
            p.logits(TOKENS)
        assert words in str(error.value)

    def test_integers_are_no_logits(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((2, 3, 4), np.int32))
        body = f"sys.stdout.buffer.write(open({str(tmp_path / 'x.npy')!r}, 'rb').read())"
        with (
            process(body + "\nsys.stdout.flush()") as p,
            pytest.raises(PortError, match=r"int32\[2, 3, 4\], should be a float array"),
        ):
            p.logits(TOKENS)

    def test_a_refusal_leaves_the_program_running(self) -> None:
        body = f"""\
if len(json.loads(line)["tokens"][0]) > 2:
    print(json.dumps({{"error": "at most 2"}}), flush=True)
    continue
import os; pid = os.getpid()
{ECHO.replace("t / 2", "pid")}"""
        with process(body) as p:
            first = p.logits(TOKENS[:, :2])
            with pytest.raises(Refused, match="child: at most 2"):
                p.logits(TOKENS)
            assert np.array_equal(p.logits(TOKENS[:, :2]), first)

    def test_one_that_died_is_started_anew(self) -> None:
        with process(f"if len(line) > 30: sys.exit(1)\n{ECHO}") as p:
            for _ in range(2):
                assert p.logits(TOKENS[:1, :2]).shape == (1, 2, 2)
                with pytest.raises(PortError, match="exit status 1"):
                    p.logits(TOKENS)

    def test_no_hang(self) -> None:
        """What the program started goes with it."""
        body = "import subprocess; subprocess.run(['sleep', '600'])"
        with process(body, timeout=1.0) as p:
            start = time.monotonic()
            with pytest.raises(PortError, match="gave no answer within 1 s"):
                p.logits(TOKENS)
            # Far below the sleep, and far above what a busy machine takes.
            assert time.monotonic() - start < 120

    @pytest.mark.parametrize(
        "start", [r'{"logits": [[[', r"\x93NUMPY\x02\x00\xff\xff\xff\x7f", r'{"error": "']
    )
    def test_an_answer_without_end_is_not_read(self, start: str) -> None:
        body = f"""\
sys.stdout.buffer.write(b'{start}')
while True: sys.stdout.buffer.write(b'1' * 65536)"""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with process(body) as p, pytest.raises(PortError, match="answered with a") as error:
            p.logits(TOKENS)
        assert len(str(error.value)) < 600
        # In kB: 16 MiB, and what holds them on the way.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000

    def test_how_long_an_answer_may_be(self) -> None:
        """Enough for any way of writing what was asked for, and not a multiple of that."""
        numbers = 8 * 1024 * 50257
        assert 26 * numbers < largest(np.zeros((8, 1024)), 50257) < 50 * numbers

    @pytest.mark.parametrize(
        "said",
        [
            "'x' * 60000",
            "json.dumps({'error': 'x' * 60000})",
            "json.dumps({'error': ['x'] * 6000})",
            "json.dumps({'logits': 'x' * 60000})",
            "json.dumps({'logits': [['x' * 60000]]})",
            "json.dumps({'x' * 60000: 1})",
            "'[' * 60000",
            "'1' * 60000",
            "json.dumps({'logits': [[[10 ** 400]]]})",
        ],
    )
    def test_nothing_long_is_echoed(self, said: str) -> None:
        with process(f"print({said}, flush=True)") as p, pytest.raises(PortError) as error:
            p.logits(TOKENS)
        assert len(str(error.value)) < 600
        assert str(error.value).isprintable()

    def test_nothing_long_is_echoed_of_last_words(self) -> None:
        body = "sys.stderr.write('\\x1b[31m' + 'x' * 60000); sys.exit(1)"
        with process(body) as p, pytest.raises(PortError, match="exit status 1") as error:
            p.logits(TOKENS)
        assert len(str(error.value)) < 600
        assert str(error.value).isprintable()

    def test_what_is_left_of_a_broken_answer_is_no_answer_to_the_next(self) -> None:
        body = f"print('no', flush=True)\n{ECHO}"
        with process(body) as p:
            for _ in range(2):
                with pytest.raises(PortError, match="'no', which is no JSON"):
                    p.logits(TOKENS)

    def test_a_question_that_is_never_read(self) -> None:
        command = f"{shlex.quote(sys.executable)} -S -c 'import time; time.sleep(600)'"
        port = ProcessPort(command, checkpoint(), "child", timeout=1.0)
        with pytest.raises(PortError, match="gave no answer within 1 s"):
            port.logits(np.zeros((400, 400), np.int64))
        port.close()

    def test_no_such_program(self) -> None:
        port = ProcessPort("/nowhere/gpt2", checkpoint())
        with pytest.raises(PortError, match="/nowhere/gpt2 cannot be started: No such file"):
            port.logits(TOKENS)
        port.close()

    @pytest.mark.parametrize("command", ["", "  ", "'unclosed"])
    def test_no_command(self, command: str) -> None:
        with pytest.raises(UsageError):
            build(f"process={command}", checkpoint(), None, "cpu")

    def test_places(self, tmp_path: Path) -> None:
        """The directories that are named in the command are there, and gone afterwards."""
        body = "import os; print(json.dumps({'error': ' '.join(sys.argv[1:])}), flush=True)"
        source = open_checkpoint(EXAMPLES.parent / "verify/data/default/openai")
        port = ProcessPort(program(body) + " {checkpoint} --model={huggingface}", source, "child")
        with pytest.raises(Refused) as error:
            port.logits(TOKENS)
        _, first, second = str(error.value).split(" ")
        assert Path(first) == Path(source.path).resolve()
        written = Path(second.removeprefix("--model="))
        again = open_checkpoint(written)
        assert again.config == source.config
        assert np.array_equal(again.tensors["h3/mlp/c_fc/w"], source.tensors["h3/mlp/c_fc/w"])
        port.close()
        assert not written.exists()


Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


@contextmanager
def server(reply: Callable[[bytes], tuple[int, bytes]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = reply(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1/logits?x=1"
        finally:
            http.shutdown()
            thread.join()


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that is at liberty to break every rule, for one connection after another."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def hear(connection: socket.socket) -> None:
    """Read the whole question: who hangs up on what is unread resets the connection."""
    said = b""
    while part := connection.recv(1 << 16):
        said += part
        head, end, body = said.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2]
        if end and len(body) >= int(length.split()[0]):
            return


class TestServer:
    def test_the_oracle_behind_a_server(self) -> None:
        import io
        import json

        source = checkpoint()

        def reply(body: bytes) -> tuple[int, bytes]:
            rows = json.loads(body)["tokens"]
            if len(rows[0]) > CONFIG.n_ctx:
                return 413, b"too long"
            out = io.BytesIO()
            exact = [reference_logits(source.tensors, CONFIG, np.array(row)) for row in rows]
            np.save(out, np.array(exact, np.float32))
            return 200, out.getvalue()

        with server(reply) as url:
            report = judged(url, source)
        assert report.verdict is Verdict.VERIFIED
        (beyond,) = (c for c in report.findings if c.id == "positions.beyond")
        assert beyond.status is Status.PASSED
        assert "refused with status 413: too long" in beyond.message

    @pytest.mark.parametrize(
        ("status", "body", "words"),
        [
            (500, b"", "status 500"),
            (404, b"", "status 404"),
            (200, b"", "of 0 bytes is cut short"),
            (200, b"<html>", "answered '<html>', which is no JSON"),
            (200, b"\x93NUMPY\x01\x00\x76", "of 9 bytes is cut short"),
            (400, b"why not", "refused with status 400: why not"),
        ],
    )
    def test_what_is_no_answer(self, status: int, body: bytes, words: str) -> None:
        with server(lambda _: (status, body)) as url, pytest.raises(PortError) as error:
            HttpPort(url).logits(TOKENS)
        assert words in str(error.value)

    def test_nobody_there(self) -> None:
        with server(lambda _: (200, b"")) as url:
            pass
        with pytest.raises(PortError, match="refused"):
            HttpPort(url).logits(TOKENS)

    def test_no_hang(self) -> None:
        waiting = threading.Event()

        def never(_: bytes) -> tuple[int, bytes]:
            waiting.wait(60)
            return 200, b""

        with server(never) as url:
            with pytest.raises(PortError, match=r"no answer within 0.5 s"):
                HttpPort(url, timeout=0.5).logits(TOKENS)
            waiting.set()

    @pytest.mark.parametrize(
        "drops",
        [
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000,  # headers without end
            b"HTTP/1.1 100 Continue\r\n\r\n" * 400,  # always yet to begin
            b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"{" * 9_999,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n{\r\n" * 2_000,
        ],
    )
    def test_drop_by_drop(self, drops: bytes) -> None:
        """Each byte comes in time, and all of them never do."""

        def drip(connection: socket.socket) -> None:
            hear(connection)
            for i in range(len(drops)):
                connection.sendall(drops[i : i + 1])
                time.sleep(0.01)

        with listener(drip) as url:
            start = time.monotonic()
            with pytest.raises(PortError, match=r"no answer within 1 s"):
                HttpPort(url, timeout=1.0).logits(TOKENS)
            assert time.monotonic() - start < 60

    @pytest.mark.parametrize(
        "headers", [b"", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"]
    )
    def test_an_answer_without_end_is_not_read(self, headers: bytes) -> None:
        piece = b"1" * 65536
        if b"chunked" in headers:
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)

        def pour(connection: socket.socket) -> None:
            hear(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
            while True:
                connection.sendall(piece)

        with listener(pour) as url, pytest.raises(PortError, match="more than 16777216 bytes"):
            HttpPort(url, vocabulary=2, timeout=60.0).logits(TOKENS)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_no_other_address_is_asked(self, status: int) -> None:
        asked = threading.Event()

        def other(connection: socket.socket) -> None:
            asked.set()

        with listener(other) as elsewhere:

            def away(connection: socket.socket) -> None:
                hear(connection)
                line = f"HTTP/1.1 {status} X\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
                connection.sendall(line.encode())

            words = f"status {status}, on to {elsewhere}, which is not followed"
            with listener(away) as url, pytest.raises(PortError, match=words):
                HttpPort(url, timeout=60.0).logits(TOKENS)
            assert not asked.is_set()

    def test_nothing_long_is_echoed(self) -> None:
        def reason(connection: socket.socket) -> None:
            hear(connection)
            connection.sendall(b"HTTP/1.1 500 " + b"\x1b" * 60_000 + b"\r\n\r\n")

        with listener(reason) as url, pytest.raises(PortError, match="status 500") as error:
            HttpPort(url, timeout=60.0).logits(TOKENS)
        assert len(str(error.value)) < 2000
        assert str(error.value).isprintable()

    @pytest.mark.parametrize("url", ["http://x:port/", "http://[::1/"])
    def test_no_address_at_all(self, url: str) -> None:
        with pytest.raises(UsageError, match="not the address of a server"):
            build(url, checkpoint(), None, "cpu")

    def test_no_address(self) -> None:
        with pytest.raises(UsageError, match="not the address of a server"):
            build("http://", checkpoint(), None, "cpu")


def on_the_default(spec: str) -> PortReport:
    return run(None, [spec], Options(lengths=(7,))).ports[0]


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")

    def build_it(old: str = "", new: str = "") -> str:
        text = (EXAMPLES / "c/gpt2.c").read_text()
        assert old in text
        (folder / "gpt2.c").write_text(text.replace(old, new, 1) if old else text)
        made = folder / f"gpt2-{len(list(folder.iterdir()))}"
        words = [compiler, "-O2", "-Wall", "-Werror", "-o", made, folder / "gpt2.c", "-lm"]
        subprocess.run(words, check=True)
        return f"process={shlex.quote(os.fspath(made))} {{huggingface}}"

    return build_it


class TestOtherLanguages:
    """The examples, right and with one mistake each."""

    def test_c(self, c: Callable[[str, str], str]) -> None:
        report = on_the_default(c("", ""))
        assert report.verdict is Verdict.VERIFIED
        passed = {check.id for check in report.findings if check.status is Status.PASSED}
        assert {"logits", "determinism", "batch", "positions.limit", "positions.beyond"} <= passed

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("tanhf(0.7978845608f * (x + 0.044715f * x * x * x))", "erff(x * 0.70710678f)"),
            ("+ 1e-5)", "+ 1e-6)"),
            ("score[s] /= sqrtf(K);", ""),
            ("s <= t; s++) total", "s < t || !s; s++) total"),
        ],
    )
    def test_c_with_a_mistake(self, c: Callable[[str, str], str], old: str, new: str) -> None:
        """Its logits alone: every law on so slow a port takes long, and refutes no more of it."""
        source = open_checkpoint(EXAMPLES.parent / "verify/data/default/huggingface")
        inputs = [seeded(source.config, 7, 0)]
        report = judge(c(old, new), source, inputs, None, "cpu", Silent(), laws=())
        assert report.verdict is Verdict.REFUTED

    def test_javascript_over_http(self) -> None:
        node = shutil.which("node")
        if node is None:
            pytest.skip("no Node.js")
        model = EXAMPLES.parent / "verify/data/default/huggingface"
        with subprocess.Popen(
            [node, EXAMPLES / "javascript/gpt2.mjs", model, "0"], stdout=subprocess.PIPE, text=True
        ) as child:
            try:
                assert child.stdout is not None
                url = child.stdout.readline().strip()
                port: Port = build(url, checkpoint(), None, "cpu")
                source = open_checkpoint(model)
                tokens = np.arange(40).reshape(2, 20) * 7
                # In double precision on both sides: nothing but the order of the sums differs.
                for got, row in zip(port.logits(tokens), tokens, strict=True):
                    known = Noise(reference_run(source.tensors, source.config, row))
                    known.assert_holds("logits", got)
                with pytest.raises(Refused, match="257 tokens, 256 at most"):
                    port.logits(np.zeros((1, 257), np.int64))
            finally:
                child.kill()


def test_the_glue_is_short() -> None:
    """What the protocol costs, in lines."""
    for name in ("c/gpt2.c", "javascript/gpt2.mjs"):
        text = (EXAMPLES / name).read_text()
        glue = text.split("---- the glue")[1].split("int main")[0]
        assert len(glue.splitlines()) < 40, name
