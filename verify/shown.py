"""How a result shows itself: as text where it is printed, as its page in a notebook.

A result is a noun, and its renderers lie far below it. They are reached by way of the public face,
which loads nothing before it is used.
"""

from __future__ import annotations

import base64

#: Style of the frame; the reader may drag its lower edge.
_STYLE = "width: 100%; height: 40em; border: 0; resize: vertical; overflow: auto"


def framed(page: str) -> str:
    """A whole page inside another one, without anything in common with it.

    The page comes as a ``data:`` address in a sandbox, so that its origin is nobody's: its style
    does not leak into the notebook, and its script can neither read nor change what is around it.
    """
    content = base64.b64encode(page.encode("utf-8")).decode("ascii")
    return (
        f'<iframe title="gpt-verify" sandbox="allow-scripts" style="{_STYLE}" '
        f'src="data:text/html;charset=utf-8;base64,{content}"></iframe>'
    )


class Printed:
    """Something that the command prints, and that looks the same at a Python prompt."""

    def __repr__(self) -> str:
        from gpt_verify import words

        return words(self).rstrip("\n")


class Shown(Printed):
    """Something that has a page as well."""

    def _repr_html_(self) -> str:
        """What Jupyter shows: the page that ``--html`` writes, in a frame of its own."""
        from gpt_verify import html

        return framed(html(self))
