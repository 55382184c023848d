"""A page whose figures are older than what they measure says so.

    python scripts/figures.py --check              # what is not as it should be; exit status 1
    python scripts/figures.py --write              # put the marks where they belong
    python scripts/figures.py --numerics changed   # the code that decides numbers decides otherwise
    python scripts/figures.py --numerics same      # it was renamed, moved or made faster

Every result in ``docs/results`` carries the laws and the version of the numerics that it was made
with (``gpt_verify.judging.made_with``). Above the figures of a page stands a comment that names
their results:

    <!-- figures: bench-124M.json -->

and the line after it, where there is one, is the mark: it is written here and nowhere else. A
result that says nothing of its making is from before results did, and counts as older.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt_verify.judging.made_with import made_with  # noqa: E402  # of this repository, installed or not

RESULTS = "docs/results"
VERSION = ROOT / "verify" / "numerics" / "version.py"
#: The code that decides numbers.
DECIDE = ("reference", "verify/graph", "verify/numerics", "verify/laws")
ANCHOR = re.compile(r"^<!-- figures: (.+) -->$")
#: So many checks are named where figures were made without them; of more, how many.
FEW = 3
MARK = "> **These figures are older than what they measure.**"


# What is older


def stored(root: Path, name: str) -> Mapping[str, Any]:
    """What a result, or a page itself, says that it was made with; empty where it says nothing."""
    if name.startswith("{"):
        found: dict[str, Any] = json.loads(name)
        return found
    result = json.loads((root / RESULTS / name).read_text(encoding="utf-8"))
    return dict(result.get("environment", {}).get("made_with", {}))


def why_older(made: Mapping[str, Any], now: Mapping[str, Any], faults: bool) -> str | None:
    """The reason why figures are older, in words; None where they are of today. ``faults``: they
    are about known faults."""
    if not made:
        return "made before results recorded the laws and the version of the numerics"
    reasons = []
    laws, today = set(made.get("laws", ())), set(now["laws"])
    if new := sorted(today - laws):
        many = f"when {len(new)} checks of today did not exist yet"
        reasons.append(f"without {', '.join(new)}" if len(new) <= FEW else many)
    if gone := sorted(laws - today):
        reasons.append(f"with {', '.join(gone)}, which is no law any more")
    if made.get("numerics") != now["numerics"]:
        reasons.append(f"with numerics {made.get('numerics')}, today {now['numerics']}")
    if faults and made.get("faults") != now["faults"]:
        reasons.append("with another catalogue of faults")
    return f"made {'; '.join(reasons)}" if reasons else None


def mark(root: Path, names: list[str], now: Mapping[str, Any]) -> str | None:
    """The line for these results; None where all are of today."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        about_faults = name.startswith(("power", "outside", "reports"))
        if reason := why_older(stored(root, name), now, about_faults):
            reasons.setdefault(reason, []).append(name)
    if not reasons:
        return None
    if len(names) == 1:
        return f"{MARK} They were {next(iter(reasons))}."
    each = [f"{', '.join(f'`{name}`' for name in of)}: {reason}." for reason, of in reasons.items()]
    return f"{MARK} {' '.join(each)}"


def names_in(comment: str) -> list[str]:
    """The names of the results that a comment names, or the one piece of JSON that it is."""
    return [comment] if comment.startswith("{") else comment.split()


def marked(root: Path, text: str, now: Mapping[str, Any]) -> str:
    """A page with the marks that it should have."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(MARK):
            continue
        lines.append(line)
        if (found := ANCHOR.match(line)) and (words := mark(root, names_in(found[1]), now)):
            lines.append(words)
    return "\n".join(lines) + "\n"


# Pages


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def anchored(text: str) -> set[str]:
    found = (ANCHOR.match(line) for line in text.splitlines())
    return {name for match in found if match for name in names_in(match[1])}


def mistakes(root: Path = ROOT, now: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What is not as it should be, a line each."""
    now = made_with() if now is None else now
    results = {path.name for path in (root / RESULTS).glob("*.json")}
    shown: set[str] = set()
    for page in pages(root):
        where, text = page.relative_to(root).as_posix(), page.read_text(encoding="utf-8")
        names = anchored(text)
        shown |= names
        if missing := {name for name in names if not name.startswith("{")} - results:
            yield f"{where}: shows {', '.join(sorted(missing))}, which {RESULTS} has not"
            continue
        mentioned = {name for name in results if re.search(rf"(?<![\w-]){re.escape(name)}", text)}
        if unmarked := mentioned - names:
            yield f"{where}: mentions {', '.join(sorted(unmarked))} without <!-- figures: … -->"
        wanted = marked(root, text, now)
        if wanted != text:
            lines, right = text.splitlines(), wanted.splitlines()
            for line in right:
                if line.startswith(MARK) and line not in lines:
                    yield f"{where}: should say {line!r}"
            for line in lines:
                if line.startswith(MARK) and line not in right:
                    yield f"{where}: should not say {line!r}"
            if sorted(lines) == sorted(right):
                yield f"{where}: its marks are not under their comments"
    for name in sorted(results - shown):
        yield f"{RESULTS}/{name}: no page shows it under <!-- figures: … -->"


# The version of the numerics


def digest(root: Path = ROOT) -> str:
    """A digest of the code that decides numbers: of what it does, not of how it reads.

    Comments, docstrings, annotations, imports and the words of messages do not count, nor does the
    order of functions or the file that they are in. A constant does, and so does an operation.
    """
    parts = []
    for package in DECIDE:
        files = sorted((root / package).rglob("*.py"))
        if not files:
            raise SystemExit(f"{package}: no code there; DECIDE of {Path(__file__).name} is old")
        for path in files:
            if path.name != VERSION.name:
                body = ast.parse(path.read_text(encoding="utf-8")).body
                parts += [_plain(node) for node in body if not _is_words(node)]
    whole = "\n".join(sorted(parts))
    return hashlib.sha256(whole.encode()).hexdigest()


#: Parts of a syntax tree that say nothing of what is computed, or that not every Python has.
_SAY_NOTHING = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind", "simple"}


def _is_words(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.JoinedStr)


def _plain(node: Any) -> str:
    """A syntax tree as text that is the same for every version of Python."""
    if isinstance(node, list):
        return "[" + ",".join(_plain(n) for n in node if not _is_words(n)) + "]"
    if isinstance(node, ast.JoinedStr):
        return "words"
    if isinstance(node, ast.Constant):
        # What has a blank in it is for people to read.
        return "words" if isinstance(node.value, str) and " " in node.value else repr(node.value)
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_plain(value)}"
            for name, value in ast.iter_fields(node)
            if name not in _SAY_NOTHING and value not in (None, [])
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    return repr(node)


def record(changed: bool) -> str:
    """Write down the digest of today, under the next version where the numbers changed."""
    text = VERSION.read_text(encoding="utf-8")
    (known,) = re.findall(r"^VERSION = (\d+)$", text, re.M)
    number = int(known) + changed
    text = re.sub(r"^VERSION = .*$", f"VERSION = {number}", text, flags=re.M)
    text = re.sub(r"^SOURCE = .*$", f'SOURCE = "{digest()}"', text, flags=re.M)
    VERSION.write_text(text, encoding="utf-8")
    return f"numerics {number}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true")
    what.add_argument("--write", action="store_true")
    what.add_argument("--numerics", choices=("same", "changed"))
    arguments = parser.parse_args()
    if arguments.numerics:
        print(record(arguments.numerics == "changed"))
        return 0
    if arguments.write:
        now = made_with()
        for page in pages(ROOT):
            text = page.read_text(encoding="utf-8")
            if (wanted := marked(ROOT, text, now)) != text:
                page.write_text(wanted, encoding="utf-8")
                print(page.relative_to(ROOT))
    found = list(mistakes())
    print("\n".join(found) or "every page says how old its figures are")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
