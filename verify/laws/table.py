"""The table of laws that are held against every port after its weights, sites and logits.

To add a law: a function in a file of this folder that takes a ``Subject`` and returns findings,
and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpt_verify.findings import Finding
from gpt_verify.laws.batch.check import check_batch
from gpt_verify.laws.cache.check import check_cache
from gpt_verify.laws.causality.check import check_bits
from gpt_verify.laws.causality.gradient import check_causal_gradient
from gpt_verify.laws.causality.pattern import check_pattern, patterns
from gpt_verify.laws.determinism.check import check_mode, check_state
from gpt_verify.laws.device.check import check_device
from gpt_verify.laws.gradient.check import at_the_weights, check_gradient
from gpt_verify.laws.lens.check import check_lens
from gpt_verify.laws.loss.check import (
    check_loss,
    check_loss_batch,
    check_loss_ignored,
    check_loss_reference,
)
from gpt_verify.laws.padding.check import check_padding
from gpt_verify.laws.positions.check import check_beyond, check_limit
from gpt_verify.laws.precision.check import check_precision
from gpt_verify.laws.reference_gradient import LENGTH
from gpt_verify.laws.subject import Subject
from gpt_verify.laws.symmetry.check import (
    check_heads,
    check_neurons,
    check_rotate,
    check_scale,
    check_shift,
)
from gpt_verify.laws.symmetry.gradient import check_symmetry_gradient
from gpt_verify.laws.tokenizer.check import check_decode, check_encode
from gpt_verify.laws.tying.check import at_the_logits, check_graph, check_storage, check_value
from gpt_verify.laws.tying.copies import check_persistence
from gpt_verify.laws.tying.gradient import check_tied_gradient
from gpt_verify.lens.states import state_sites
from gpt_verify.numerics.derivatives import noise_bytes
from gpt_verify.reference.config import Config

Sites = Callable[[Config], list[str | None]]


def nowhere(config: Config) -> list[str | None]:
    """Of a law that has no site: one finding."""
    return [None]


def of_the_stream(config: Config) -> list[str | None]:
    """At each state of the residual stream: one finding each."""
    return list(state_sites(config))


def every_model(config: Config) -> str | None:
    """Of a law that binds whatever the architecture is."""
    return None


def if_tied(config: Config) -> str | None:
    return None if config.tied else "the checkpoint says that its head is no copy of wte: not tied"


def if_read_through_ln_f(config: Config) -> str | None:
    """The lens puts ln_f between a state and the head; without it a state is no stream of sums."""
    if config.norm_last:
        return None
    return f"the lens reads states through ln_f, which {config.architecture} does not have"


def little(config: Config) -> int:
    """Bytes of a law that looks at short sequences."""
    return 0


def a_whole_context(config: Config) -> int:
    """Bytes of a law that runs n_ctx tokens: three versions of their logits, and the patterns of a
    layer in the reference's two arithmetics, each with what its softmax makes on the way."""
    logits, patterns = config.n_ctx * config.n_vocab, config.n_head * config.n_ctx**2
    return 4 * 3 * logits + (8 + 4) * 3 * patterns


def derivatives(config: Config) -> int:
    """Bytes of a law that asks for derivatives: the table, its widened copy and its derivative in
    float64, and the noisy runs of the reference."""
    return 8 * 3 * config.n_vocab * config.n_embd + noise_bytes(config, LENGTH)


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        id: of its findings: ``law`` or ``law.part``.
        check: holds it against a port. What it raises on inputs that every GPT-2 takes is a
            failure of the port; ``NotExamined`` is none.
        needs: optional members of ``Port`` without which it is not examined.
        sites: where it has a finding.
        free: why models of this kind are free of it; None of those that it binds.
        writes: whether it writes to the port's weights, and so must put them back.
        takes: how many bytes it takes beside the port, estimated. It is not begun where fewer are
            free.
    """

    id: str
    check: Callable[[Subject], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    sites: Sites = nowhere
    free: Callable[[Config], str | None] = every_model
    writes: bool = False
    takes: Callable[[Config], int] = little

    def lacking(self, subject: Subject) -> str | None:
        """Why it cannot be held against this port: what the port lacks, or the model's kind."""
        if why := self.free(subject.config):
            return why
        lacking = (n for n in self.needs if getattr(subject.port, n, None) is None)
        return next((LACKS[n] for n in lacking), None)


#: What a port without an optional member is said to lack.
LACKS = {
    "parameters": "no parameters shown",
    "activations": "no activations shown",
    "float64": "no float64",
    "loss": "no loss",
    "step": "no cache",
    "padded": "no attention mask",
    "padded_at": "no attention mask with positions",
    "gradients": "no gradients",
    "input_gradients": "no gradients at the input",
    "tying": "no graph",
    "copies": "no copies",
    "training": "no training mode",
    "elsewhere": "no other device",
    "tokenizers": "no tokenizer",
}

LAWS: tuple[Law, ...] = (
    Law("tying.value", check_value, ("parameters",), at_the_logits, if_tied),
    Law("tying.storage", check_storage, ("parameters",), at_the_logits, if_tied, writes=True),
    Law(
        "tying.gradient",
        check_tied_gradient,
        ("parameters", "gradients"),
        at_the_logits,
        if_tied,
        takes=derivatives,
    ),
    Law("tying.graph", check_graph, ("tying",), at_the_logits, if_tied),
    Law(
        "tying.persistence",
        check_persistence,
        ("parameters", "copies"),
        at_the_logits,
        if_tied,
        writes=True,
    ),
    Law("precision", check_precision, ("activations",)),
    Law("device", check_device),
    Law("causality.bits", check_bits, takes=a_whole_context),
    Law("causality.pattern", check_pattern, ("activations",), patterns),
    Law("causality.gradient", check_causal_gradient, ("input_gradients",)),
    Law("loss.value", check_loss, ("loss",)),
    Law("loss.ignored", check_loss_ignored, ("loss",)),
    Law("loss.batch", check_loss_batch, ("loss",)),
    Law("loss.reference", check_loss_reference, ("loss",)),
    Law("lens", check_lens, sites=of_the_stream, free=if_read_through_ln_f),
    Law("batch", check_batch),
    Law("cache", check_cache, ("step",), takes=a_whole_context),
    Law("positions.limit", check_limit, takes=a_whole_context),
    Law("positions.beyond", check_beyond, takes=a_whole_context),
    Law("positions.padding", check_padding),
    Law("gradient", check_gradient, ("parameters", "gradients"), at_the_weights, takes=derivatives),
    Law("symmetry.heads", check_heads, ("parameters",), writes=True),
    Law("symmetry.neurons", check_neurons, ("parameters",), writes=True),
    Law("symmetry.scale", check_scale, ("parameters",), writes=True),
    Law("symmetry.rotate", check_rotate, ("parameters",), writes=True),
    Law("symmetry.shift", check_shift, ("parameters",), writes=True),
    Law(
        "symmetry.gradient",
        check_symmetry_gradient,
        ("parameters", "gradients"),
        writes=True,
        takes=derivatives,
    ),
    Law("tokenizer.encode", check_encode, ("tokenizers",)),
    Law("tokenizer.decode", check_decode, ("tokenizers",)),
    Law("determinism.mode", check_mode, ("training",)),
    Law("determinism.state", check_state),
)
