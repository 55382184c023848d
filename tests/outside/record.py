"""A fault as data: what is wrong, where somebody would make that mistake, and what must be said.

``law``, ``site`` and ``words`` were written before the tool had judged the fault. Where one of them
was mended afterwards, ``mended`` says why.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outside import picogpt
from outside.gpt2 import GPT2, filled

AREAS = (
    *("embedding", "attention", "block", "weights", "head", "cache", "masks", "state", "logits"),
    *("porting", "serving", "engines"),
)


@dataclass(frozen=True)
class Outside:
    """One fault that is kept out of the catalogue.

    Attributes:
        name: its own, which need not be the tool's.
        wrong: one sentence, of which the port is the subject.
        origin: where such a mistake comes from.
        build: a checkpoint → the port.
        law: a regular expression; a check whose id it matches as a whole must fail.
        site: the same of the first site at which an operation is wrong; empty where none has to be.
        words: the same, found anywhere in a name that the report gives and in its sentence.
        mended: why what must be said is not what was first written.
    digest: of its code, by which a result is known to be that of this fault.
    """

    name: str
    wrong: str
    origin: str
    build: Callable[[Any], Any]
    law: str
    site: str
    words: str
    mended: str = ""
    digest: str = ""


def digest_of(change: Any) -> str:
    """Of what a class or a function does: what is expected of it stands above it, and does not
    count."""
    lines = inspect.getsource(change).splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(("class ", "def ")))
    return hashlib.sha256("\n".join(lines[begin:]).encode()).hexdigest()[:12]


class Table(dict[str, Outside]):
    """The faults of one area, each added by a decorator over what is wrong."""

    def __init__(self, prefix=""):
        super().__init__()
        self.prefix = prefix

    def _add(self, build_of):
        def described(wrong, origin, *, words, law="", site="", mended=""):
            def decorate(change):
                assert law or site, change
                name = self.prefix + _words(change.__name__)
                digest = digest_of(change)
                assert name not in self, name
                build = build_of(change)
                self[name] = Outside(name, wrong, origin, build, law, site, words, mended, digest)
                return change

            return decorate

        return described

    @property
    def part(self):
        """A class that is put into the place of the part of the model that it derives from."""

        def build_of(part):
            def build(checkpoint):
                config = checkpoint.config
                model = part(config) if issubclass(part, GPT2) else GPT2(config, part)
                return filled(model, checkpoint.tensors).eval()

            return build

        return self._add(build_of)

    @property
    def weights(self):
        """A function that changes the tensors before they are loaded."""

        def build_of(change):
            def build(checkpoint):
                tensors = {name: value.copy() for name, value in checkpoint.tensors.items()}
                change(tensors, checkpoint.config)
                return filled(GPT2(checkpoint.config), tensors).eval()

            return build

        return self._add(build_of)

    @property
    def after(self):
        """A function that changes the finished model, or returns another."""

        def build_of(change):
            def build(checkpoint):
                model = filled(GPT2(checkpoint.config), checkpoint.tensors).eval()
                return change(model) or model

            return build

        return self._add(build_of)

    def numpy(self, function):
        """A function of that name in the port that shows nothing but logits."""

        def build_of(change):
            return lambda checkpoint: picogpt.port(checkpoint, {function: change})

        return self._add(build_of)


def _words(name):
    """``ScaledTwice`` and ``scaled_twice`` as ``scaled-twice``."""
    parts = "".join(f"-{c.lower()}" if c.isupper() else c for c in name)
    return parts.replace("_", "-").strip("-")


def every() -> dict[str, tuple[str, Outside]]:
    """Name → area and fault, of all areas."""
    found: dict[str, tuple[str, Outside]] = {}
    for area in AREAS:
        for name, fault in importlib.import_module(f"outside.{area}").FAULTS.items():
            assert name not in found, name
            found[name] = area, fault
    return found
