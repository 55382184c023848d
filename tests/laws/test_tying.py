"""Tying: by value and by storage, each refuted by a port that breaks it and by no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tying_faults as faults
from models import CONFIG, checkpoint, failed_laws, finding, judged
from plain_ports import faulty, plain
from subjects import hold, port, subject

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.errors import ToolError
from gpt_verify.findings import Finding, Status, Verdict
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.tying.check import check_storage
from gpt_verify.port import PARAMETERS, Floats, Parameter, Port, Tokens
from gpt_verify.reference import Config
from gpt_verify.reference.model import logits as reference_logits
from gpt_verify.reference.weights import tensor_table

Alter = Callable[[Any], None]

#: One token, two; one position, one channel, one head; as many tokens as channels.
ODD = [
    Config(1, 1, 2, 1, 1),
    Config(1, 5, 6, 1, 1),
    Config(2, 3, 4, 2, 1),
    Config(3, 1, 8, 2, 1),
    Config(6, 4, 6, 2, 1),
    Config(501, 9, 16, 2, 1),
]


class Oracle(Port):
    """The reference itself, its tensors in the layouts that a port may keep them in.

    Args:
        transposed: wte is kept [D, V].
        writable: whether its parameters take values.
    """

    name = "oracle"

    def __init__(self, source: Checkpoint, transposed: bool = False, writable: bool = True) -> None:
        self.config, self.writable = source.config, writable
        self.values = {name: np.array(source.tensors[name]) for name in tensor_table(self.config)}
        self.transposed = transposed
        if transposed:
            self.values["wte"] = np.ascontiguousarray(self.values["wte"].T)

    def logits(self, tokens: Tokens) -> Floats:
        weights = {**self.values}
        if self.transposed:
            weights["wte"] = weights["wte"].T
        rows = [reference_logits(weights, self.config, row) for row in tokens]
        return np.stack(rows).astype(np.float32)

    def parameters(self) -> Iterator[Parameter]:
        for name, value in self.values.items():
            write = None
            if self.writable:

                def write(new: Floats, value: Floats = value) -> None:
                    value[...] = new

            yield Parameter(name, value.shape, value.copy, name, write=write)


def one(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def bits(made: Port) -> list[bytes]:
    return [p.read().tobytes() for p in made.parameters()]


class TestCorrectPorts:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
    def test_one_matrix_at_both_ends(self, attention: str, dtype: Any) -> None:
        made = port(attention=attention, dtype=dtype)
        before = bits(made)
        names = "transformer.wte.weight is lm_head.weight"
        value = one(hold("tying.value", made))
        assert (value.status, value.site) == (Status.PASSED, "logits")
        assert value.message == f"{names}: one matrix, hence one value"
        storage = one(hold("tying.storage", made))
        assert storage.status is Status.PASSED, storage.message
        assert storage.message.startswith(
            f"{names}: a write through transformer.wte.weight and through lm_head.weight shows"
        )
        assert bits(made) == before

    @pytest.mark.parametrize("config", ODD, ids=str)
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_odd_sizes_and_weights(self, config: Config, dtype: Any, scale: float) -> None:
        source = checkpoint(config, scale=scale)
        found = one(hold("tying.storage", port(dtype=dtype, source=source), source))
        # Where the logits overflow or depend on nothing, nothing is said.
        assert found.status is not Status.FAILED, found.message

    def test_nothing_depends_on_what_is_embedded(self) -> None:
        """Layer norm of one channel is its bias."""
        source = checkpoint(Config(2, 3, 1, 1, 1))
        found = one(hold("tying.storage", port(source=source), source))
        assert found.status is Status.NOT_EXAMINED
        assert "no logit depends on what is embedded" in found.message

    def test_every_logit_is_zero(self) -> None:
        source = checkpoint()
        source.tensors["wte"][:] = 0
        source.tensors["ln_f/g"][:] = source.tensors["ln_f/b"][:] = 0
        found = one(hold("tying.storage", port(source=source), source))
        assert found.status is Status.NOT_EXAMINED
        assert "the head (every logit is zero)" in found.message

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("config", [CONFIG, *ODD], ids=str)
    def test_either_layout(self, transposed: bool, config: Config) -> None:
        source = checkpoint(config)
        made = Oracle(source, transposed)
        assert one(hold("tying.value", made, source)).message == "wte: one matrix, hence one value"
        found = one(hold("tying.storage", made, source))
        assert found.status is not Status.FAILED, found.message
        if config == CONFIG:
            assert found.status is Status.PASSED

    def test_a_constant_for_each_position(self) -> None:
        """A port that centres its logits moves all of them when one row is written."""

        def centre(model: Any) -> None:
            model.lm_head.register_forward_hook(lambda m, a, out: out - out.mean(-1, keepdim=True))

        found = one(hold("tying.storage", port(centre)))
        assert found.status is Status.PASSED, found.message


class TestNotExamined:
    def test_weights_are_not_shown(self) -> None:
        made = Oracle(checkpoint())
        made.withdraw(PARAMETERS)
        for law in ("tying.value", "tying.storage"):
            assert one(hold(law, made)).message == "no parameters shown"

    def test_weights_cannot_be_written_to(self) -> None:
        found = one(hold("tying.storage", Oracle(checkpoint(), writable=False)))
        assert found.status is Status.NOT_EXAMINED
        assert found.message == "its weights cannot be written to"

    def test_no_parameter_is_wte(self) -> None:
        made = Oracle(checkpoint())
        made.values["wte"] = np.zeros((3, 2), np.float32)
        found = one(hold("tying.value", made))
        assert found.status is Status.NOT_EXAMINED
        assert found.message == "no parameter could be matched to wte"

    def test_other_logits_every_time(self) -> None:
        def noisy(model: Any) -> None:
            calls: list[int] = []
            model.lm_head.register_forward_hook(
                lambda m, a, out: (calls.append(0), out + len(calls))[1]
            )

        found = one(hold("tying.storage", port(noisy)))
        assert found.status is Status.NOT_EXAMINED
        assert "not the same twice" in found.message


class TestByValue:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize(
        ("alter", "differ"),
        [
            (faults.head_drawn_anew, None),
            (faults.head_scaled, None),
            (faults.head_through_half_precision, None),
            (faults.head_one_bit, 1),
        ],
    )
    def test_refuted(self, alter: Alter, differ: int | None, dtype: Any) -> None:
        if alter is faults.head_through_half_precision and dtype == "bfloat16":
            dtype = "float64"  # in bfloat16 it is no fault
        found = one(hold("tying.value", port(alter, dtype=dtype)))
        assert found.status is Status.FAILED
        assert found.message.startswith("lm_head.weight[")
        assert "(transformer.wte.weight): the head is not tied" in found.message
        if differ is not None:
            assert f"{differ} of {CONFIG.n_vocab * CONFIG.n_embd} differ" in found.message
            assert found.message.startswith("lm_head.weight[3, 5] = ")

    def test_a_copy_is_equal(self) -> None:
        found = one(hold("tying.value", port(faults.head_copied)))
        assert found.status is Status.PASSED
        assert found.message == "lm_head.weight equals transformer.wte.weight bit for bit"

    def test_both_wrong_alike_are_tied(self) -> None:
        """Against each other, not against the checkpoint: that is the law of weights."""

        def scaled(model: Any) -> None:
            faults.head_copied(model)
            for end in (model.lm_head, model.transformer.wte):
                end.weight.data.mul_(1.25)

        assert one(hold("tying.value", port(scaled))).status is Status.PASSED


class TestByStorage:
    @pytest.mark.parametrize("alter", [faults.head_copied, faults.head_drawn_anew])
    def test_a_parameter_of_its_own(self, alter: Alter) -> None:
        found = one(hold("tying.storage", port(alter)))
        assert found.status is Status.FAILED
        assert "lm_head.weight is a matrix of its own" in found.message

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("alter", [faults.head_in_a_buffer, faults.head_kept_by_a_closure])
    def test_a_head_that_no_parameter_shows(self, alter: Alter, dtype: Any) -> None:
        made = port(alter, dtype=dtype)
        before = bits(made)
        found = one(hold("tying.storage", made))
        assert found.status is Status.FAILED
        assert "47 of 47 rows of transformer.wte.weight were overwritten" in found.message
        assert "the head reads other memory" in found.message
        assert "the lookup" not in found.message
        assert found.fault == "tying-head-hidden"
        assert bits(made) == before

    def test_a_part_of_the_head(self) -> None:
        found = one(hold("tying.storage", port(faults.head_copied_in_part)))
        assert found.status is Status.FAILED
        assert " of 47 rows of transformer.wte.weight were overwritten" in found.message
        assert "47 of 47" not in found.message
        assert found.fault == "tying-head-part-hidden"

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_a_lookup_in_other_memory(self, dtype: Any) -> None:
        found = one(hold("tying.storage", port(faults.lookup_copied, dtype=dtype)))
        assert found.status is Status.FAILED
        assert "is embedded as before" in found.message
        assert "the lookup reads other memory" in found.message
        assert "the head" not in found.message
        assert found.fault == "tying-lookup-hidden"

    def test_both_ends_in_other_memory_are_no_one_fault(self) -> None:
        def both(model: Any) -> None:
            faults.head_in_a_buffer(model)
            faults.lookup_copied(model)

        found = one(hold("tying.storage", port(both)))
        assert found.status is Status.FAILED
        assert "the head reads other memory" in found.message
        assert "the lookup reads other memory" in found.message
        assert found.fault is None

    @pytest.mark.parametrize("alter", [faults.head_in_a_buffer, faults.lookup_copied])
    @pytest.mark.parametrize("config", [Config(1, 5, 6, 1, 1), Config(2, 3, 4, 2, 1)], ids=str)
    def test_vocabularies_of_one_and_two(self, alter: Alter, config: Config) -> None:
        source = checkpoint(config)
        found = one(hold("tying.storage", port(alter, source=source), source))
        assert found.status is Status.FAILED
        end = "head" if alter is faults.head_in_a_buffer else "lookup"
        assert f"the {end} reads other memory" in found.message
        # One logit that is compared apart from a constant says nothing of what is computed.
        assert found.fault == {"head": "tying-head-hidden", "lookup": None}[end]

    def test_a_write_that_reaches_other_tokens(self) -> None:
        def mixed(model: Any) -> None:
            model.lm_head.register_forward_hook(lambda m, a, out: out + 0.1 * out.roll(1, -1))

        found = one(hold("tying.storage", port(mixed)))
        assert found.status is Status.FAILED
        assert "only rows of other tokens were overwritten" in found.message
        assert found.fault is None

    def test_what_cannot_be_restored_is_no_finding(self) -> None:
        made = Oracle(checkpoint())
        table = made.values["wte"]

        def sticky() -> Iterator[Parameter]:
            for p in Oracle.parameters(made):
                if p.name == "wte":

                    def write(new: Floats) -> None:
                        table[1:] = new[1:]
                        table[0] += 1

                    p = Parameter(p.name, p.shape, p.read, p.storage, write=write)
                yield p

        made.parameters = sticky  # type: ignore[method-assign]
        with pytest.raises(ToolError, match="wte does not hold what it held before"):
            list(check_storage(subject(made)))


@pytest.mark.parametrize("name", [n for n, f in CATALOGUE.items() if f.family == "tying"])
def test_every_fault_of_the_catalogue_is_named_by_its_law(name: str) -> None:
    made, law = faulty(name), CATALOGUE[name].law
    assert law is not None
    found = one(hold(law, made))
    assert found.status is Status.FAILED
    assert found.fault == name
    # Today it computes what a port that is tied does.
    assert one(hold("tying.value", made)).status is Status.PASSED
    assert [f.status for f in hold("causality.bits", made)] == [Status.PASSED]


def test_of_another_function_nobody_knows_why_the_lookup_is_not_followed() -> None:
    """A layer norm that overflows in half precision: its bias, whatever is embedded."""
    source = checkpoint(Config(101, 2, 4, 1, 2), seed=20, scale=10.0)
    found = one(hold("tying.storage", plain(source=source, dtype="float16"), source))
    assert "is embedded as before" in found.message
    assert found.fault is None


class TestUntiedInTransformers:
    """tie_word_embeddings=False: the hub serves fine-tuned models whose head went its own way."""

    def directory(self, tmp_path: Path, alter: Alter) -> Path:
        made = port(alter)
        made.module.config.tie_word_embeddings = False  # type: ignore[attr-defined]
        made.module.save_pretrained(tmp_path)  # type: ignore[attr-defined]
        return tmp_path

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_a_head_that_differs(self, tmp_path: Path, attention: str) -> None:
        source = checkpoint()
        spec = f"huggingface-{attention}={self.directory(tmp_path, faults.head_scaled)}"
        report = judged(spec, source)
        assert report.verdict is Verdict.REFUTED
        assert {"tying.value", "tying.storage", "tying.graph"} <= failed_laws(report)
        assert "the head is not tied" in finding(report, "tying.value", "logits").message

    def test_an_equal_head(self, tmp_path: Path) -> None:
        """Refuted on tying, not on its numbers."""
        spec = f"huggingface-sdpa={self.directory(tmp_path, faults.head_copied)}"
        report = judged(spec, checkpoint())
        assert report.verdict is Verdict.REFUTED
        assert failed_laws(report) == {
            *("tying.storage", "tying.gradient", "tying.graph", "tying.persistence")
        }
        assert finding(report, "tying.value", "logits").status is Status.PASSED
        assert report.first_divergence == "logits"
