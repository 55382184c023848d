"""One page in one file: template, style, script and data, and nothing that is fetched.

A report is attached to a CI run, sent by mail, opened years later. So the page holds all it needs,
and a content security policy that the browser enforces keeps it from asking anybody for anything:
only the style and the script whose digests it names are used, and there is no other source.

What a port says of itself is untrusted. Every value is escaped on its way into the page, and what
cannot be printed (escape codes, overrides of the writing direction, halves of surrogate pairs) is
shown as its escape.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gpt_verify import __version__
from gpt_verify.report.json import plain
from gpt_verify.text import number


def printable(value: object) -> object:
    """Text in which every character shows; markup stays markup, what is no text stays as it is."""
    if not isinstance(value, str) or value.replace("\n", "").replace("\t", "").isprintable():
        return value
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in value)
    return Markup(shown) if isinstance(value, Markup) else shown


def as_data(value: Any) -> Markup:
    """JSON that can stand in a ``<script type="application/json">`` whatever its strings hold."""
    text = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def figure(value: object) -> object:
    """Whole numbers with their thousands set apart; everything else as it is."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gpt_verify.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    environment.filters |= {"number": number, "figure": figure, "data": as_data}
    return environment


def _read(names: Iterable[str]) -> Markup:
    folder = resources.files("gpt_verify.report").joinpath("pages")
    return Markup("\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def policy(style: str, script: str) -> str:
    """The content security policy of a page with this style and this script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def assemble(
    template: str,
    context: Mapping[str, object],
    *,
    styles: Iterable[str],
    scripts: Iterable[str],
    filters: Mapping[str, Callable[..., object]] | None = None,
    more_style: str = "",
) -> str:
    """A whole page.

    Args:
        template: name of the Jinja template in ``pages/``.
        context: what the template shows.
        styles, scripts: names of the files in ``pages/`` that go into the page, in this order.
        filters: further filters of the template.
        more_style: rules that are computed; they hold nothing that comes from a port.
    """
    style, script = _read(styles) + Markup(more_style), _read(scripts)
    environment = _environment().overlay()
    environment.filters = {**environment.filters, **(filters or {})}
    return environment.get_template(template).render(
        **context, style=style, script=script, policy=policy(style, script), version=__version__
    )
