"""docs/api.md, from the docstrings of the public names.

    python scripts/api_page.py           # exit status 1 where the page is another
    python scripts/api_page.py --write

Every name of ``gpt_verify.__all__`` has its place in ``SECTIONS``. The examples of the page are run
by ``tests/scripts/test_api_page.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gpt_verify as gv  # noqa: E402  # of this repository

PAGE = ROOT / "docs" / "api.md"

#: What the examples are about: the module of examples/python/modules.py with one fault.
PREAMBLE = """\
import sys
from pathlib import Path

import gpt_verify as gv
from torch import nn

sys.path.append("examples/python")
from modules import factory

port = factory(gv.open_checkpoint())  # a torch.nn.Module, with the checkpoint's weights …
port.blocks[1].mlp[1] = nn.GELU()  # … and the exact GELU, where GPT-2 has the tanh approximation
"""

INTRODUCTION = f"""\
# The Python interface

Written by `scripts/api_page.py` from the docstrings; do not edit.

Whatever a port, a test or a notebook needs is a name in `gpt_verify`. Nothing else in the package
is meant to be imported: it may change without notice. `import gpt_verify` loads no framework.

What `run`, `lens`, `claims` and `compare` return prints itself as the command does
(`print(report)`). In a notebook the first three show the page that `--html` writes, in a frame of
its own: [examples/from_a_fault_to_its_name.ipynb](../examples/from_a_fault_to_its_name.ipynb).

Shapes: B sequences, T tokens, V = `n_vocab`, D = `n_embd`, H = `n_head`, N states of the residual
stream. Logarithms are natural: losses, entropies and divergences are in nats.

In the examples, which tests run:

```python
{PREAMBLE}```
"""

SECTIONS: dict[str, tuple[str, ...]] = {
    "To judge, to compare, to look inside": ("run", "compare", "lens", "claims"),
    "Files": ("html", "json", "schema"),
    "A report": ("Report", "PortReport", "Finding", "Cause", "Verdict", "Status"),
    "A comparison": ("Comparison", "PortComparison", "Pair"),
    "The lens": ("LensReport", "Reading", "Lens"),
    "Claims": ("ClaimsReport", "Decided", "Claim", "Measured"),
    "Checkpoints": ("open_checkpoint", "Checkpoint"),
    "A port of your own": (
        *("Port", "Parameter", "Capability", "LOSS", "STEP", "PADDED", "PADDED_AT"),
        *("MASKED", "STEP_PADDED", "STEP_PADDED_AT"),
        *("IGNORED", "NotExamined", "ProcessPort", "HttpPort"),
    ),
    "Errors": (
        *("GptVerifyError", "CheckpointError", "PortError", "MissingDependency", "UsageError"),
    ),
}

HEADING = re.compile(r"^(Args|Attributes|Returns|Raises|Example):\n", re.MULTILINE)
ITEM = re.compile(r"([^\s:][^:\n]*): (.*)", re.DOTALL)


class Malformed(SystemExit):
    """A docstring from which no page can be made."""


class Docstring:
    """A docstring in its parts: what it says first, and its sections by their headings."""

    def __init__(self, of: Any, called: str) -> None:
        text = inspect.cleandoc(of.__doc__ or "")
        if not text:
            raise Malformed(f"{called}: no docstring")
        self.called = called
        self.text, *rest = HEADING.split(text + "\n")
        self.sections = dict(zip(rest[::2], map(textwrap.dedent, rest[1::2]), strict=True))

    def items(self, heading: str) -> list[tuple[str, str]]:
        """``name: what it is`` one by one, each in one line."""
        found = []
        for item in re.split(r"\n(?=\S)", self.sections.get(heading, "").strip()):
            if item and not (match := ITEM.fullmatch(item)):
                raise Malformed(f"{self.called}: {heading}: no “name: words”: {item!r}")
            elif item:
                found.append((match[1], " ".join(match[2].split())))
        return found

    def named(self, heading: str) -> set[str]:
        """Every name that has an item; one item may have several, set apart by commas."""
        return {n.strip() for names, _ in self.items(heading) for n in names.split(",")}

    @cached_property
    def example(self) -> str:
        return self.sections.get("Example", "").strip()


def spans(text: str) -> str:
    """``name`` as Markdown has it."""
    return re.sub(r"``(.+?)``", r"`\1`", text)


def signature(function: Any, name: str) -> str:
    """``name(first, *, second=…) → what``, folded where it is long."""
    whole = inspect.signature(function)
    own = [p.replace(annotation=p.empty) for p in whole.parameters.values() if p.name != "self"]
    returned = whole.return_annotation
    result = "" if returned in (whole.empty, "None") else f" -> {returned}"
    line = f"{name}{whole.replace(parameters=own, return_annotation=whole.empty)}{result}"
    return textwrap.fill(line, 100, subsequent_indent="    ", break_long_words=False)


def listed(items: list[tuple[str, str]]) -> Iterator[str]:
    for names, words in items:
        shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        yield f"- {shown}: {spans(words)}"


def body(text: Docstring) -> Iterator[str]:
    """All that follows a heading."""
    yield spans(text.text.strip())
    yield ""
    for heading, title in (("Args", "Arguments"), ("Attributes", "Attributes")):
        if items := text.items(heading):
            yield f"{title}:"
            yield ""
            yield from listed(items)
            yield ""
    if returns := text.sections.get("Returns"):
        yield f"Returns: {spans(' '.join(returns.split()))}"
        yield ""
    if items := text.items("Raises"):
        yield "Raises:"
        yield ""
        yield from listed(items)
        yield ""
    if text.example:
        yield from fenced(text.example)


def fenced(code: str) -> Iterator[str]:
    yield "```python"
    yield code
    yield "```"
    yield ""


def function(thing: Any, name: str) -> Iterator[str]:
    text = Docstring(thing, name)
    parameters = [p for p in inspect.signature(thing).parameters if p != "self"]
    complete(name, "Args", set(parameters), text)
    yield from fenced(signature(thing, f"gv.{name}"))
    yield from body(text)


def complete(name: str, heading: str, expected: set[str], text: Docstring) -> None:
    """Every argument and every field is documented, and nothing that is not there.

    Raises:
        Malformed: otherwise.
    """
    if expected and expected ^ text.named(heading):
        raise Malformed(f"{name}: {heading}: {sorted(expected ^ text.named(heading))}")


def record(thing: Any, name: str) -> Iterator[str]:
    text = Docstring(thing, name)
    if issubclass(thing, enum.Enum):
        yield from body(text)
        yield ", ".join(f"`{name}.{member.name}` = `{member.value!r}`" for member in thing)
        yield ""
        return
    if "Args" in text.sections:  # it is made by its user
        complete(name, "Args", {*inspect.signature(thing).parameters}, text)
        yield from fenced(signature(thing, f"gv.{name}"))
    if dataclasses.is_dataclass(thing):
        complete(name, "Attributes", {field.name for field in dataclasses.fields(thing)}, text)
    yield from body(text)
    members = list(methods(thing, name))
    if members:
        yield "Properties and methods:"
        yield ""
        yield from members
        yield ""


def methods(thing: Any, name: str) -> Iterator[str]:
    """The public properties and methods of a class, without those that another entry has."""
    inherited = {*dir(gv.Port)} if thing is not gv.Port and issubclass(thing, gv.Port) else set()
    for key, value in vars(thing).items():
        kept = isinstance(value, property | cached_property)
        own = value.fget if isinstance(value, property) else getattr(value, "func", value)
        if key.startswith("_") or key in inherited or not (kept or inspect.isfunction(value)):
            continue
        shown = key if kept else " ".join(signature(own, key).split()).removesuffix(" -> None")
        said = Docstring(own, f"{name}.{key}").text
        yield f"- `{shown}`: {spans(' '.join(said.split()))}"


def constant(value: Any, name: str) -> Iterator[str]:
    """What the comment above it says."""
    lines = Path(inspect.getfile(gv.Port)).read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if re.match(rf"{name}\b.*=", line))
    first = at
    while lines[first - 1].startswith("#:"):
        first -= 1
    said = " ".join(line.removeprefix("#:").strip() for line in lines[first:at])
    if not said:
        raise Malformed(f"{name}: no comment")
    shown = f"`{value!r}`. " if isinstance(value, int) else ""
    if isinstance(value, gv.Capability):
        shown = f"The capability `{value.name}`; a port without it reads *{value.lacking}*. "
    yield shown + spans(said)
    yield ""


def entry(name: str) -> Iterator[str]:
    thing = getattr(gv, name)
    yield f"### `{name}`"
    yield ""
    if inspect.isclass(thing):
        yield from record(thing, name)
    elif inspect.isfunction(thing):
        yield from function(thing, name)
    else:
        yield from constant(thing, name)


def written() -> str:
    """The page.

    Raises:
        SystemExit: a public name has no place in it, or a docstring leaves something out.
    """
    shown = [name for names in SECTIONS.values() for name in names]
    if sorted(shown) != sorted(gv.__all__):
        raise Malformed(f"SECTIONS and gpt_verify.__all__: {sorted({*shown} ^ {*gv.__all__})}")
    lines = [INTRODUCTION]
    for title, names in SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += entry(name)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the page")
    text = written()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit("docs/api.md: not what the docstrings say; see scripts/api_page.py")


if __name__ == "__main__":
    main()
