"""What ``import gpt_verify`` gives to whoever has a port in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import checkpoint

import gpt_verify as gv
from gpt_verify.judging.options import Options
from gpt_verify.judging.selection import request


def _module(source: gv.Checkpoint) -> Any:
    from gpt_verify.ports.huggingface import huggingface

    module: Any = huggingface(source, "eager").module  # type: ignore[attr-defined]
    return lambda ids: module(ids).logits, module


class Halved(gv.Port):
    """A port of its own, whose logits are half of what they should be."""

    name = "halved"

    def __init__(self, source: gv.Checkpoint) -> None:
        self._logits, _ = _module(source)

    def logits(self, tokens: Any) -> Any:
        with torch.no_grad():
            return self._logits(torch.as_tensor(tokens)).numpy() / 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gpt_verify.checkpoint.write import write_huggingface

    written = tmp_path_factory.mktemp("face") / "huggingface"
    made = checkpoint()
    write_huggingface(written, made.config, made.tensors)
    return written


def test_nothing_is_loaded_before_it_is_used() -> None:
    code = (
        "import sys, gpt_verify\n"
        "heavy = {'numpy', 'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'Port' in dir(gpt_verify) and gpt_verify.Port.__name__ == 'Port'\n"
        "assert not {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    for name in gv.__all__:
        assert getattr(gv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tun'"):
        gv.tun  # type: ignore[attr-defined]  # noqa: B018


def test_a_module_from_memory(directory: Any) -> None:
    _, module = _module(gv.open_checkpoint(directory))
    report = gv.run(module, directory, lengths=[5])
    (port,) = report.ports
    assert (port.name, port.error, port.verdict) == ("GPT2LMHeadModel", None, gv.Verdict.VERIFIED)
    assert "h.0.ln_1" in {f.site for f in port.findings if f.status is gv.Status.PASSED}


def test_a_module_with_a_fault_is_refuted_where_it_is(directory: Any) -> None:
    _, module = _module(gv.open_checkpoint(directory))
    module.transformer.h[1].mlp.act = torch.nn.GELU()
    (port,) = gv.run(module, directory, lengths=[5]).ports
    assert (port.verdict, port.first_divergence) == (gv.Verdict.REFUTED, "h.1.mlp.act")


def test_a_function_and_a_port_in_one_run(directory: Any) -> None:
    source = gv.open_checkpoint(directory)
    logits, _ = _module(source)

    def right(tokens: Any) -> Any:
        with torch.no_grad():
            return logits(torch.as_tensor(np.asarray(tokens))).numpy()

    report = gv.run([right, Halved(source), right], directory, lengths=[5])
    assert [port.name for port in report.ports] == ["right", "halved", "right 2"]
    verified, refuted = gv.Verdict.VERIFIED, gv.Verdict.REFUTED
    assert [port.verdict for port in report.ports] == [verified, refuted, verified]


def test_a_part_of_a_module_is_not_its_name(directory: Any) -> None:
    _, module = _module(gv.open_checkpoint(directory))
    module.name = torch.nn.Identity()
    asked = request(Path(directory), [module, torch.nn.Linear(1, 1)], Options())
    assert asked.specs == ("GPT2LMHeadModel", "Linear")


def test_what_is_no_port_is_an_error_in_the_report(directory: Any) -> None:
    (port,) = gv.run(gv.IGNORED, directory, lengths=[5]).ports  # type: ignore[arg-type]
    assert port.verdict is gv.Verdict.UNJUDGED
    assert port.error is not None and "returned int" in port.error


class TestLens:
    def test_a_module_from_memory_beside_the_reference(self, directory: Any) -> None:
        _, module = _module(gv.open_checkpoint(directory))
        read = gv.lens(module, tokens=np.array([3, 1, 4, 1]), checkpoint=directory)
        own, port = read.readings
        assert (own.name, port.name, port.error) == ("reference", "GPT2LMHeadModel", None)
        assert port.lens is not None
        states, k = 2 * gv.open_checkpoint(directory).config.n_layer + 1, 5
        for lens in (read.reference, port.lens):
            assert lens.loss_nats.shape == lens.rank_input.shape == (states, 4)
            assert lens.top_ids.shape == (states, 4, k)
        # The last state is what the module itself predicts from.
        with torch.no_grad():
            logits = module(torch.tensor([[3, 1, 4, 1]])).logits[0]
        assert port.lens.top1_NT[-1].tolist() == logits.argmax(-1).tolist()

    def test_a_fault_shows_from_its_layer_on(self, directory: Any) -> None:
        _, module = _module(gv.open_checkpoint(directory))
        module.transformer.h[1].mlp.act = torch.nn.ReLU()
        read = gv.lens(module, tokens=[3, 1, 4, 1, 5], checkpoint=directory)
        port = read.readings[1].lens
        assert port is not None
        apart = np.abs(port.entropy_nats - read.reference.entropy_nats).max(axis=1)
        first = read.reference.sites.index("h.1.resid_post")
        assert apart[first:].min() > apart[:first].max()

    def test_what_has_no_states_says_so(self, directory: Any) -> None:
        def mine(tokens: Any) -> Any:
            return np.zeros((*tokens.shape, gv.open_checkpoint(directory).config.n_vocab))

        read = gv.lens(mine, tokens=[3, 1], checkpoint=directory)
        assert read.exit_status == 2
        assert read.readings[1].error is not None and "not shown" in read.readings[1].error
        assert read.repeat == f"gpt_verify.lens(mine, checkpoint={str(directory)!r}, tokens=[3, 1])"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({}, "a text or tokens"),
            ({"text": "a", "tokens": [1, 2]}, "a text or tokens"),
            ({"tokens": [1, 2], "top": 0}, "top: 0 is less than 1"),
            ({"tokens": [1, 2], "decoder": "no"}, "--decoder no"),
            ({"tokens": [[1, 2]]}, "tokens: whole numbers"),
        ],
    )
    def test_what_makes_no_sense(self, arguments: Any, complaint: str) -> None:
        with pytest.raises(gv.UsageError, match=complaint):
            gv.lens(**arguments)


def test_claims() -> None:
    (decided,) = gv.claims("wpe-added").claims
    assert (decided.claim.id, decided.verdict, decided.contradicted) == ("wpe-added", "true", False)
    with pytest.raises(gv.UsageError, match="did you mean wpe-added"):
        gv.claims(["wpe-addde"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"device": "gpu"}, "device 'gpu': one of cpu, cuda"),
        ({"dtype": "float64"}, "dtype 'float64': None, or one of float32"),
        ({"seed": -1}, "seed: -1 is less than 0"),
        ({"seed": 0.5}, "seed: whole numbers"),
        ({"lengths": [0]}, "lengths: 0 is less than 1"),
        ({"tokens": ["a"]}, "tokens: whole numbers"),
        ({"text": b"a"}, "text: a string, not bytes"),
        ({"lengths": [3], "tokens": [1, 2]}, "lengths and tokens exclude each other"),
        ({"text": "a", "tokens": [1, 2]}, "tokens and text exclude each other"),
        ({"require": "everything"}, "everything"),
        ({"ignore_keys": "none"}, "none"),
    ],
)
def test_options_that_make_no_sense(arguments: Any, complaint: str) -> None:
    with pytest.raises(gv.UsageError, match=complaint):
        gv.run(gv.IGNORED, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (gv.html, "there is no page of an object of type dict"),
        (gv.json, "there is no JSON of an object of type dict"),
    ],
)
def test_what_is_no_result_has_no_report(write: Any, says: str) -> None:
    with pytest.raises(gv.UsageError, match=says):
        write({})


def test_a_function_of_the_face_is_not_hidden_by_the_room_of_its_name() -> None:
    """Whatever has been imported, and in whatever order."""
    code = (
        "import gpt_verify as gv, gpt_verify.lens, gpt_verify.claims.tying\n"
        "from gpt_verify.lens import Lens\n"
        "from gpt_verify import claims, lens\n"
        "assert gv.lens is lens and gv.claims is claims and gv.Lens is Lens\n"
        "assert lens.__module__ == 'gpt_verify.judging.face', lens\n"
        "assert callable(gv.claims)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_a_port_from_memory_is_repeated_in_python(directory: Any) -> None:
    def mine(tokens: Any) -> Any:
        raise ValueError

    report = gv.run(["huggingface-eager", mine], directory, tokens=np.array([1, 2]), require="50%")
    assert report.repeat == (
        f"gpt_verify.run(['huggingface-eager', mine], checkpoint={str(directory)!r}, "
        "tokens=[1, 2], require=['50%'])"
    )
    assert eval(report.repeat, {"gpt_verify": gv, "mine": mine}).repeat == report.repeat


def test_what_is_handed_over_is_no_specification_whatever_it_is_called(directory: Any) -> None:
    """``huggingface`` stands for two ports of ours, on the command line."""

    def huggingface(tokens: Any) -> Any:
        return np.zeros((*np.shape(tokens), gv.open_checkpoint(directory).config.n_vocab))

    halved = Halved(gv.open_checkpoint(directory))
    halved.name = "huggingface-eager"
    asked = request(Path(directory), [huggingface, "huggingface", halved, halved], Options())
    assert asked.specs == (
        *("huggingface 2", "huggingface-eager", "huggingface-sdpa"),
        *("huggingface-eager 2", "huggingface-eager 3"),
    )
    assert asked.held == dict(zip(asked.held, [huggingface, halved, halved], strict=True))
    (port,) = gv.run(huggingface, directory, lengths=[3]).ports
    assert (port.name, port.verdict) == ("huggingface", gv.Verdict.REFUTED)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # once in a process
def test_a_module_may_share_the_memory_of_a_checkpoint_that_is_read_only(directory: Path) -> None:
    """As ``torch.from_numpy`` makes it, with a warning; laws that write to it reach no file."""
    files = {path: path.read_bytes() for path in directory.iterdir()}
    source = gv.open_checkpoint(directory)
    _, module = _module(source)
    assert not source.tensors["wte"].flags.writeable
    module.transformer.wte.weight.data = torch.from_numpy(source.tensors["wte"])
    report = gv.run(module, directory, lengths=[5])
    assert report.verdict is gv.Verdict.VERIFIED
    assert {path: path.read_bytes() for path in directory.iterdir()} == files
