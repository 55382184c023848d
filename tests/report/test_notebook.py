"""What a notebook shows of a result; and the notebook of the examples, executed as it stands."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import good, report, wrong

import gpt_verify as gv
from gpt_verify.shown import framed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "from_a_fault_to_its_name.ipynb"


class Elements(HTMLParser):
    """The elements of a piece of HTML, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_within(html: str) -> str:
    """The page in the frame; nothing else may be around it that a notebook would take for its own:
    no style, no script, no text."""
    elements = Elements(html)
    ((tag, attributes),) = elements.found
    assert (tag, elements.text) == ("iframe", "")
    # With a script, but of no origin: it reaches nothing of the notebook.
    assert attributes["sandbox"] == "allow-scripts"
    head, _, content = str(attributes["src"]).partition(";base64,")
    assert head == "data:text/html;charset=utf-8"
    return base64.b64decode(content, validate=True).decode("utf-8")


class TestFrame:
    @pytest.mark.parametrize("port", [good(), wrong()], ids=["verified", "refuted"])
    def test_a_report_is_its_page(self, port: gv.PortReport) -> None:
        made = report(port)
        assert page_within(made._repr_html_()) == gv.html(made)
        assert "<style>" in gv.html(made)

    def test_a_lens_and_claims_are_theirs(self) -> None:
        for made in (gv.lens(tokens=[1, 2, 3]), gv.claims("tie-transpose")):
            assert page_within(made._repr_html_()) == gv.html(made)

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_no_page_gets_out_of_it(self, page: str) -> None:
        assert page_within(framed(page)) == page

    def test_what_a_port_says_does_not(self) -> None:
        made = report(good("</iframe><script>alert(1)</script>"))
        assert "alert" not in made._repr_html_()
        assert "<script>alert" not in page_within(made._repr_html_())


class TestWords:
    def test_where_there_is_no_html_the_command_speaks(self) -> None:
        from IPython.lib.pretty import pretty

        made = report(wrong())
        assert str(made).startswith("refuted: ")
        assert pretty(made) == str(made)
        assert str(gv.compare(made, made)).splitlines()[-1].startswith("nothing is worse")

    def test_one_claim_is_answered_and_several_are_listed(self) -> None:
        one, two = gv.claims("tie-transpose"), gv.claims(["tie-transpose", "wpe-added"])
        assert one.claims[0].answer.split()[0] in str(one)
        assert "repeat:" in str(one) and "repeat:" not in str(two)


@pytest.fixture(scope="module")
def executed() -> Any:
    """The notebook after a run in its folder, by a kernel of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}
    )
    return client.execute()


def cell(notebook: Any, name: str) -> list[Any]:
    """What a cell has put out."""
    (found,) = [cell for cell in notebook.cells if cell.id == name]
    return list(found.outputs)


class TestNotebook:
    def test_it_is_text_without_outputs(self) -> None:
        stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
        nbformat.validate(stored)
        cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
        assert cells and all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
        assert NOTEBOOK.stat().st_size < 8192

    def test_it_names_the_fault(self, executed: Any) -> None:
        (said,) = cell(executed, "run")
        assert said.text == "refuted at h.1.mlp.act, explained by gelu-erf\n"
        (said,) = cell(executed, "mended")
        assert re.fullmatch(r"verified; [1-9]\d* checks are better, 0 worse\n", said.text)

    @pytest.mark.parametrize(
        ("name", "first", "page"),
        [("page", "refuted: ", "gelu-erf"), ("lens", "reference: ", "GPT2")],
    )
    def test_results_are_shown_as_pages(
        self, executed: Any, name: str, first: str, page: str
    ) -> None:
        (shown,) = cell(executed, name)
        assert shown.data["text/plain"].startswith(first)
        assert page in page_within(shown.data["text/html"])

    def test_nothing_else_is_said(self, executed: Any) -> None:
        for each in executed.cells:
            for output in each.get("outputs", ()):
                assert output.get("name") != "stderr", output
                assert output.output_type != "error", output
