"""Damaged and hostile checkpoints: each is read, or refused in one line, and nothing is left of it.

    python scripts/hostile_files.py --count 1000 --json docs/results/hostile-files.json

Each round takes one of the sound directories, damages one file of it in one of the ways below, and
runs ``gpt-verify run`` on it in a child of this process. What is asked of every one of them:

- status 2 with one line of text on standard error, which names the directory; or, where the damage
  says nothing (a bit of a weight in a format without checksums), status 0 and a verdict;
- an end within ``LONGEST`` seconds;
- no more memory than a sound one takes, and twice the size of its files;
- no file left in the temporary directory, and no process left in the child's session.

The exit status is 1 where one of them does otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hostile import LONGEST, complaints

from gpt_verify.checkpoint import default_checkpoint
from gpt_verify.checkpoint.synthetic import resolve_size, synthesize, synthesize_family
from gpt_verify.command.cli import main as command
from gpt_verify.judging.run import environment

#: A correct port, which reads every tensor.
PORT = """
import numpy as np
from gpt_verify.reference.model import logits

def port(checkpoint):
    tensors = {name: np.array(value) for name, value in checkpoint.tensors.items()}
    def run(tokens):
        return np.stack([logits(tensors, checkpoint.config, row) for row in tokens]).astype("f4")
    return run
"""
Damage = Callable[[Path, random.Random], None]


@dataclass
class Outcome:
    """What came of one directory.

    Attributes:
        form: the sound directory that it was.
        file: which of its files was damaged.
        damage: how.
        status: of the command; None where it was ended for taking too long.
        line: the last line of standard error.
        seconds: how long it took.
        megabytes: the most that was resident.
        wrong: what was not as it should be; empty where all was.
    """

    form: str
    file: str
    damage: str
    status: int | None
    line: str
    seconds: float
    megabytes: float
    wrong: list[str]


# What is done to a file


def _bytes(change: Callable[[bytearray, random.Random], object]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        changed = change(data, rng)
        path.write_bytes(data if not isinstance(changed, bytes) else changed)

    return damage


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _early(data: bytearray, rng: random.Random) -> None:
    """The first bytes, where sizes and offsets are."""
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 64))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))


def _block(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 8, 100, 4096))
    data[at : at + size] = bytes([rng.choice((0, 0xFF, 0x80))]) * len(data[at : at + size])


def _numbers(data: bytearray, rng: random.Random) -> None:
    """A length or an offset that is far too large."""
    huge = rng.choice((2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    at = rng.choice((0, 8, max(0, len(data) - 48), rng.randrange(len(data) + 1)))
    data[at : at + 8] = struct.pack("<Q", huge)


_VALUES: tuple[Any, ...] = (
    None, -1, 0, 0.5, 2**70, 1e308, float("nan"), True, "x", "x" * 100_000, [], {}, [[[]]], [2**40],
)  # fmt: skip


def _json(path: Path, rng: random.Random) -> None:
    """One value of a JSON file is another, or one key is missing, or twice there."""
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    if not isinstance(stored, dict) or not stored:
        path.write_text(json.dumps(rng.choice(_VALUES)))
        return
    key = rng.choice(list(stored))
    if rng.random() < 0.2:
        del stored[key]
    else:
        stored[key] = rng.choice(_VALUES)
    path.write_text(json.dumps(stored))


def _deep(path: Path, rng: random.Random) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def _in_place(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    """A terabyte of which nothing is on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _exchanged(path: Path, rng: random.Random) -> None:
    """Another file of the directory in its place."""
    others = [p for p in path.parent.iterdir() if p != path and p.is_file()]
    shutil.copy(rng.choice(others), path)


DAMAGES: dict[str, Damage] = {
    "truncated": _bytes(lambda data, rng: bytes(data[: rng.randrange(len(data) + 1)])),
    "longer": _bytes(lambda data, rng: bytes(data) + rng.randbytes(rng.choice((1, 7, 5000)))),
    "bits flipped": _bytes(_flip),
    "first bytes": _bytes(_early),
    "a block overwritten": _bytes(_block),
    "a huge number": _bytes(_numbers),
    "random bytes": _bytes(lambda data, rng: rng.randbytes(rng.choice((0, 1, 40, 4000)))),
    "repeated": _bytes(lambda data, rng: bytes(data) * 2),
    "exchanged": _exchanged,
    "missing": _in_place(lambda path: None),
    "a directory": _in_place(lambda path: path.mkdir()),
    "a FIFO": _in_place(lambda path: os.mkfifo(path)),
    "a socket": _in_place(_socket),
    "a device": _in_place(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _in_place(lambda path: path.symlink_to(path.name)),
    "a sparse terabyte": _in_place(_sparse),
    "a value of JSON": _json,
    "deep JSON": _deep,
}
#: Those of files that hold JSON.
OF_JSON = ("a value of JSON", "deep JSON")


def sound(where: Path) -> dict[str, Path]:
    """Directories of every form."""
    forms = {"openai": default_checkpoint(), "huggingface": default_checkpoint("huggingface")}
    synthesize(where / "synthetic", resolve_size("101,19,24,4,3"), 1, format="huggingface")
    forms["synthetic"] = where / "synthetic"
    for family in ("llama", "gpt_neox"):
        synthesize_family(where / family, family, None, 1)
        forms[family] = where / family
    import torch
    from safetensors.torch import load_file

    shutil.copytree(where / "synthetic", where / "pickled")
    tensors = load_file(where / "pickled/model.safetensors")
    (where / "pickled/model.safetensors").unlink()
    torch.save(tensors, where / "pickled/pytorch_model.bin")
    forms["pickled"] = where / "pickled"
    return forms


# One of them


def run(directory: Path, port: Path) -> tuple[int | None, str, float, float, list[str]]:
    """Status, standard error, seconds, megabytes, and what was left behind."""
    with tempfile.TemporaryDirectory() as scratch:
        left, errors = Path(scratch) / "tmp", Path(scratch) / "stderr"
        left.mkdir()
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _command(directory, port, left, errors)
        status, used = None, None
        while time.monotonic() < start + LONGEST:
            ended, raw, used = os.wait4(child, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(raw)
                break
            time.sleep(0.01)
        seconds = time.monotonic() - start
        behind = [f"left {path.name}" for path in left.iterdir()]
        if _of_session(child) - ({child} if status is None else set()):
            behind.append("left a process")
        if status is None:
            os.killpg(child, signal.SIGKILL)
            _, _, used = os.wait4(child, 0)
        assert used is not None, "a child that has ended is accounted for"
        text = errors.read_text(errors="backslashreplace") if errors.exists() else ""
        return status, text, seconds, used.ru_maxrss / 1024, behind


def _command(directory: Path, port: Path, temporary: Path, errors: Path) -> None:
    """The child: it becomes the command, and never returns."""
    os.setsid()
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    status = 70
    try:
        words = ["run", "--quiet", "--checkpoint", str(directory), "--port", f"{port}:port"]
        status = command([*words, "--length", "3"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 70
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _of_session(session: int) -> set[int]:
    """The processes of it that still run."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[3]) == session and stat[0] != "Z":
                found.add(int(entry.name))
    return found


def judged(
    form: str, file: str, damage: str, size: int, base: float, made: Any, where: Path
) -> Outcome:
    """What is wrong with how the command ended; ``where`` is the directory of the campaign, which
    the result does not name."""
    status, text, seconds, megabytes, wrong = made
    wrong += complaints(status, text, megabytes, (0, 2), base + 2 * size / 2**20)
    lines = text.replace(str(where), "DIR").splitlines()
    last = lines[-1][:300] if lines else ""
    return Outcome(form, file, damage, status, last, round(seconds, 2), round(megabytes), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes, baselines = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch)
        (where / "port.py").write_text(PORT)
        forms = sound(where)
        for form, directory in forms.items():
            status, text, _, megabytes, behind = run(directory, where / "port.py")
            assert (status, behind) == (0, []), f"{form}, sound: {status} {text} {behind}"
            # Another run of the same takes a little more or less.
            baselines[form] = megabytes + 16
        for number in range(arguments.count):
            rng = random.Random(f"{arguments.seed} {number}")
            form = rng.choice(list(forms))
            copy = where / f"copy{number}" / "checkpoint"
            shutil.copytree(forms[form], copy)
            path = rng.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
            of_json = path.suffix == ".json"
            damage = rng.choice([name for name in DAMAGES if of_json or name not in OF_JSON])
            size = sum(p.stat().st_size for p in copy.rglob("*") if p.is_file())
            DAMAGES[damage](path, rng)
            made = run(copy, where / "port.py")
            outcomes.append(judged(form, path.name, damage, size, baselines[form], made, where))
            if outcomes[-1].wrong:
                print(f"{number}: {outcomes[-1]}", flush=True)
            shutil.rmtree(copy.parent)
    counts = Counter("judged" if o.status == 0 else "refused" for o in outcomes if not o.wrong)
    counts["otherwise"] = sum(bool(o.wrong) for o in outcomes)
    slowest = max(o.seconds for o in outcomes)
    print(f"{len(outcomes)} directories: {dict(counts)}, the slowest in {slowest:.1f} s")
    if arguments.json:
        report = {"seed": arguments.seed, "counts": dict(counts), "slowest_s": slowest}
        report |= {"environment": environment(), "outcomes": [asdict(o) for o in outcomes]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if counts["otherwise"] else 0)


if __name__ == "__main__":
    main()
