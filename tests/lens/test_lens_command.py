"""``gpt-verify lens``: what it prints and writes, and that bad input costs one line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import PORTS, complaint
from PIL import Image
from rounding import Noise, Run

from gpt_verify.checkpoint import default_checkpoint, open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.numerics.precision import FLOAT32
from gpt_verify.reference import forward
from gpt_verify.reference.lens import RESIDUAL, entropy_nats, lens, lens_logits
from gpt_verify.reference.loss import log_softmax

TEXT = "And Zorbukel said, Zorbukel"


def entropies(tokens: list[int]) -> Run:
    """Of every state of the default checkpoint, as a lens says."""
    opened = open_checkpoint(default_checkpoint())

    def run(dtype: Any, store: Any) -> Any:
        for site, value in forward(opened.tensors, opened.config, np.array(tokens), dtype, store):
            if site.endswith(RESIDUAL):
                log_q_TV = log_softmax(store(lens_logits(opened.tensors, value)))
                yield site, store(entropy_nats(log_q_TV))

    return run


Lens = Callable[..., tuple[int, str, str]]


@pytest.fixture
def read(capfd: pytest.CaptureFixture[str]) -> Lens:
    """``gpt-verify lens`` in this process: ``(exit status, standard output, standard error)``."""

    def read(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            status = main(["lens", *map(str, words)])
        except SystemExit as stop:  # argparse's own
            status = int(stop.code or 0)
        return (status, *capfd.readouterr())

    return read


class TestReading:
    def test_the_reference_alone(self, read: Lens) -> None:
        status, out, err = read(TEXT)
        assert (status, err) == (0, "")
        assert out.startswith("reference: top-1 and its probability\n")
        assert "␣Z" in out

    def test_the_numbers_are_those_of_the_definition(self, read: Lens) -> None:
        status, out, _ = read("--tokens", "5,6,7,6", "--json", "-", "--quiet")
        assert status == 0
        own = json.loads(out)["readings"][0]["lens"]
        opened = open_checkpoint(default_checkpoint())
        for n, (site, log_q_TV) in enumerate(
            lens(opened.tensors, opened.config, np.array([5, 6, 7, 6]))
        ):
            assert own["sites"][n] == site and site.endswith(RESIDUAL)
            assert own["top_ids"][n] == np.argsort(-log_q_TV, kind="stable")[:, :5].tolist()
            entropy = -(np.exp(log_q_TV) * log_q_TV).sum(-1)
            # A sum of V terms, none above max |ln q|, rounded at each step (Higham 2002, 4.2).
            rounding = opened.config.n_vocab * 2.0**-53 * np.abs(log_q_TV).max()
            found = np.array(own["statistics"]["entropy_nats"][n])
            assert np.abs(found - entropy).max() <= rounding

    def test_a_port_is_read_by_its_own_states(self, read: Lens) -> None:
        pytest.importorskip("torch")
        status, out, _ = read(TEXT, "--port", "huggingface-eager", "--json", "-", "--quiet")
        assert status == 0
        reference, port = json.loads(out)["readings"]
        assert port["name"] == "huggingface-eager"
        a, b = (np.array(r["lens"]["statistics"]["entropy_nats"]) for r in (reference, port))
        # Its float32 shows: it is not the reference under another name. It shows no more than that.
        assert np.abs(a - b).max() > 0
        known = Noise(entropies(reference["lens"]["tokens"]), FLOAT32)
        for n, site in enumerate(reference["lens"]["sites"]):
            known.assert_holds(site, b[n])

    def test_what_is_written(self, read: Lens, tmp_path: Path) -> None:
        page, picture, numbers = (tmp_path / name for name in ("a.html", "a.png", "a.json"))
        words = ("--html", page, "--png", picture, "--json", numbers, "--quiet")
        assert read(TEXT, *words) == (0, "", "")
        assert TEXT in page.read_text(encoding="utf-8")
        with Image.open(picture) as image:
            assert image.format == "PNG"
        assert json.loads(numbers.read_text(encoding="utf-8"))["text"] == TEXT

    @pytest.mark.parametrize(
        "words",
        [
            (TEXT, "--statistic", "rank_next", "--top", "2"),
            ("--tokens", "1,2,3", "--sub-blocks"),
            ("--decoder", "none", "--", "-a text with a dash"),
        ],
    )
    def test_the_command_that_is_written_repeats_it(
        self, read: Lens, words: tuple[str, ...]
    ) -> None:
        _, out, _ = read("--json", "-", "--quiet", *words)
        first = json.loads(out)
        again = shlex.split(first["repeat"])
        assert again[:2] == ["gpt-verify", "lens"]
        _, out, _ = read("--json", "-", "--quiet", *again[2:])
        assert json.loads(out) == first

    @pytest.mark.parametrize("decoder", ["none", "block:-1", "block:0"])
    def test_decoders_read_the_same_end(self, read: Lens, decoder: str) -> None:
        def own(*words: str) -> dict:
            return json.loads(read(TEXT, "--json", "-", "--quiet", *words)[1])["readings"][0][
                "lens"
            ]

        plain, other = own(), own("--decoder", decoder)
        same = other["top_ids"][-1] == plain["top_ids"][-1]
        assert same == decoder.startswith("block")
        assert other["top_ids"] != plain["top_ids"]

    def test_without_a_vocabulary_ids_are_shown(self, read: Lens, tiny: Path) -> None:
        status, out, _ = read("--checkpoint", tiny, "--tokens", "1,2,96")
        assert status == 0
        assert "#96" in out


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ((), "one of the arguments TEXT --tokens is required"),
            (("a", "--tokens", "1"), "not allowed with argument"),
            (("a", "--statistic", "x"), "no statistic x: there are probability, "),
            (("",), "0 tokens: the model takes 1 … 256"),
            (("--tokens", "2003"), "token id 2003: ids lie in 0 … 2002"),
            (("a", "--decoder", "x"), "--decoder x: not ln_f, none, block:J"),
            (("a", "--decoder", "block:4"), "there is no such block; the model has 0 … 3"),
            (("a", "--top", "0"), "0 is less than 1"),
            (("a", "--png", "-"), "--png needs a file"),
            (("a", "--html", "x", "--json", "x"), "--json and --html cannot share a file"),
            (("a", "--checkpoint", "missing"), "missing"),
        ],
    )
    def test_one_line_and_2(self, read: Lens, words: tuple[str, ...], says: str) -> None:
        status, out, err = read(*words)
        assert (status, out) == (2, "")
        assert says in complaint(err)

    def test_a_text_for_a_checkpoint_without_vocabulary(self, read: Lens, tiny: Path) -> None:
        status, _, err = read("a", "--checkpoint", tiny)
        assert status == 2
        assert "has no vocabulary" in complaint(err)

    @pytest.mark.parametrize(
        ("port", "says"),
        [("good", "not shown by the port"), ("raises", "no weights today")],
    )
    def test_a_port_that_cannot_be_read_leaves_the_others(
        self, read: Lens, port: str, says: str
    ) -> None:
        status, out, err = read("a text", "--port", f"{PORTS}:{port}")
        assert status == 2
        assert says in complaint(err)
        assert out.startswith("reference: ")

    def test_a_picture_without_matplotlib(
        self, read: Lens, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        status, out, err = read("a", "--png", tmp_path / "x.png")
        assert (status, out) == (2, "")
        assert "pip install '.[png]'" in complaint(err)
