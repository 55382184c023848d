"""What a run is asked for beside its ports: a device, a precision, and the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt_verify.errors import UsageError
from gpt_verify.inputs import Input, default_inputs, given, seeded

if TYPE_CHECKING:
    from gpt_verify.checkpoint import Checkpoint


@dataclass(frozen=True)
class Options:
    """Options of a run: what to run the ports on, and how.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: the precision to load ports in; None leaves each as it declares itself.
        seed: of the inputs.
        lengths: seeded samples of these lengths, in place of the default inputs.
        tokens: one sequence of ids, in place of the default inputs.
        text: the same, encoded with the checkpoint's own vocabulary.
        ignore_keys: keys of the checkpoint's configuration that do not alter what is computed.
        require: what must be examined, for a port not to be unjudged
            (``gpt_verify.judging.requirements``).
        waivers: specification of a port → law → why it does not bind that port, beside what the
            port itself waives (``gpt_verify.judging.waivers``).
    """

    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    lengths: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    text: str | None = None
    ignore_keys: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    waivers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def chosen_inputs(checkpoint: Checkpoint, options: Options) -> list[Input]:
    """The inputs that the options ask for; the default ones where they ask for none."""
    chosen = [x for x in ("lengths", "tokens", "text") if getattr(options, x) is not None]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    if options.lengths is not None:
        return [seeded(checkpoint.config, length, options.seed) for length in options.lengths]
    if options.tokens is not None:
        return [given(checkpoint.config, options.tokens)]
    if options.text is not None:
        from gpt_verify.checkpoint.vocabulary import encode

        return [given(checkpoint.config, encode(checkpoint, options.text))]
    return default_inputs(checkpoint.config, options.seed)
