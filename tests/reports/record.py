"""A public bug report as data: what was wrong, a port that has just that, and one that has not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outside import gpt2
from outside.gpt2 import GPT2, filled
from outside.record import digest_of

GITHUB = "https://github.com/"


@dataclass(frozen=True)
class Report:
    """One report, and the pair that was made of it.

    Attributes:
        name: of the pair.
        links: the threads, under GitHub.
        cause: what was wrong, one sentence.
        wrong: a checkpoint → the port that has exactly this fault.
        right: the same without it.
        law, site, words: as of a fault from outside (``outside.record.Outside``).
        family: of the checkpoint that both are judged on; empty of GPT-2.
        digest: of the source of the wrong port.
    """

    name: str
    links: tuple[str, ...]
    cause: str
    wrong: Callable[[Any], Any]
    right: Callable[[Any], Any]
    law: str
    site: str
    words: str
    family: str = ""
    digest: str = ""
    mended: str = ""


def of_part(part):
    """The GPT-2 with one part in the place of that which it derives from."""

    def build(checkpoint):
        config = checkpoint.config
        model = part(config) if issubclass(part, GPT2) else GPT2(config, part)
        return filled(model, checkpoint.tensors).eval()

    return build


class Log(dict[str, Report]):
    """The reports, each added by a decorator over what was wrong: a part, or a factory."""

    def report(self, name, *links, cause, words, law="", site="", right=gpt2.right, family=""):
        assert law or site, name
        assert name not in self, name

        def decorate(wrong):
            build = of_part(wrong) if inspect.isclass(wrong) else wrong
            correct = of_part(right) if inspect.isclass(right) else right
            digest = digest_of(wrong)
            self[name] = Report(
                name, links, cause, build, correct, law, site, words, family, digest
            )
            return wrong

        return decorate
