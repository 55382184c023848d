"""The lens of the reference, and of ports, on one text: gathered, so that it can be shown.

A port's states are its own, as it shows them while it runs. They are decoded like the reference's,
from the checkpoint's own tensors in float64, so that what differs is the state alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.checkpoint import Checkpoint, Tensors
from gpt_verify.errors import GptVerifyError, PortError, UsageError, described
from gpt_verify.judging.options import Options, chosen_inputs
from gpt_verify.judging.repeat import lens_command
from gpt_verify.judging.selection import Request, request
from gpt_verify.laws.lens import if_read_through_ln_f
from gpt_verify.lens import (
    UNDEFINED,
    Attribution,
    Decoder,
    FromBlock,
    Lens,
    LnF,
    Seen,
    WithoutLnF,
    attribute,
    lens,
    oracle_shown,
    port_shown,
    read_tuned,
    state_sites,
)
from gpt_verify.lens.tokens import numbered, visible
from gpt_verify.numerics.two_tables import OtherLookup
from gpt_verify.port import Port
from gpt_verify.reference.weights import parameter_count
from gpt_verify.shown import Shown

REFERENCE = "reference"

Floats = NDArray[np.floating]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """The lens of the reference or of one port.

    Attributes:
        name: ``reference``, or the port's.
        dtype, device, weights_from: as the port declares them.
        lens: what was read, or None where nothing could be.
        attributions: what each sub-block adds to a logit, of the reading's own states: ``top1``, of
            the token that the reference puts first, and ``next``, of the token that follows.
        patterns: layer → how much each target attends to each source, float[H, T, S]; empty where
            attention was not asked for, or the port does not show it.
        error: why not, in one line.
        exception: what ``error`` words; not part of any file.
    """

    name: str
    dtype: str = "float64"
    device: str = "cpu"
    weights_from: str = "checkpoint"
    lens: Lens | None = None
    error: str | None = None
    attributions: Mapping[str, Attribution] = field(default_factory=dict, compare=False)
    patterns: Mapping[int, Floats] = field(default_factory=dict, compare=False)
    exception: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, repr=False)
class LensReport(Shown):
    """One text, read through the lens of the reference and of ports.

    Attributes:
        checkpoint: ``path``, ``format``, ``config``, ``parameters``.
        text: what was read, as text; its ids where the checkpoint has no vocabulary.
        names: token id → its text, every byte visible, for every id that occurs.
        readings: the reference first.
        repeat: the command line that reads it again; a line of Python where a port was handed over
            in memory.
    """

    checkpoint: dict[str, Any]
    text: str
    names: dict[int, str]
    readings: tuple[Reading, ...]
    repeat: str = ""

    @property
    def reference(self) -> Lens:
        """The reading that the others are compared with."""
        own = self.readings[0].lens
        assert own is not None, "the reference can always be read"
        return own

    @property
    def exit_status(self) -> int:
        """0 where everything that was asked for is shown, 2 otherwise."""
        return 2 if any(reading.error for reading in self.readings) else 0


def lens_run(
    checkpoint: Path | None,
    ports: Sequence[Any],
    options: Options,
    top: int = 5,
    decoder: str = "ln_f",
    more: Sequence[str] = (),
    attention: bool = False,
) -> LensReport:
    """Read one text through the lens.

    Args:
        checkpoint: a directory of either format; None takes the one that ships with the package.
        ports: as after ``--port``, or objects; the reference is read in any case.
        options: ``text`` or ``tokens``, ``device`` and ``dtype``.
        top: how many tokens are kept of each state.
        decoder: ``ln_f``, ``none``, ``block:J``, or the file of a tuned lens.
        more: further words of the command line, for that which repeats it.
        attention: keep the patterns of attention.

    Raises:
        CheckpointError: the checkpoint or the tuned lens cannot be read, or there is no vocabulary
            for a text.
        UsageError: too few or too many tokens, an id outside the vocabulary, no such decoder.
        A port that cannot be read is no exception: its reading carries the error.
    """
    asked = request(checkpoint, ports, options, by_default=False)
    opened = asked.checkpoint
    if opened.config.own is not None:
        raise UsageError(f"the lens does not read {opened.config.architecture} yet")
    if why := if_read_through_ln_f(opened.config):
        raise UsageError(why)
    (item,) = chosen_inputs(opened, options)
    (tokens_T,) = item.tokens
    weights = _with_its_head(opened)
    read = partial(
        lens,
        weights=weights,
        tokens_T=tokens_T,
        decoder=_decoder(decoder, opened),
        k=top,
        # What ports differ by is smaller than what float32 would add to it.
        dtype=np.float64,
    )
    own = oracle_shown(opened.tensors, opened.config, tokens_T, attention)
    first = read(own.states)
    targets = {"top1": first.top1_NT[-1], "next": np.append(tokens_T[1:], UNDEFINED)}

    def said(of: Seen, found: Lens) -> dict[str, Any]:
        sums = {name: attribute(of.states, weights, t_T) for name, t_T in targets.items()}
        return {"lens": found, "attributions": sums, "patterns": of.patterns}

    readings = [Reading(REFERENCE, **said(own, first))]
    for spec in asked.specs:
        show = partial(port_shown, tokens_T=tokens_T, attention=attention)
        reading = _read_port(spec, asked, show, lambda of: said(of, read(of.states)))
        if any(reading.name == other.name for other in readings):
            reading = replace(reading, name=f"{reading.name} ({spec})")
        readings.append(reading)
    text, names = _texts(opened, tokens_T, [r.lens for r in readings if r.lens is not None])
    return LensReport(
        checkpoint={
            "path": str(opened.path),
            "format": opened.format,
            "config": opened.config.as_dict(),
            "parameters": parameter_count(opened.config),
        },
        text=options.text if options.text is not None else text,
        names=names,
        readings=tuple(readings),
        repeat=_repeat(asked, top, decoder, attention, more),
    )


def _repeat(asked: Request, top: int, decoder: str, attention: bool, more: Sequence[str]) -> str:
    """What reads it again: in Python where a port is an object, otherwise on the command line."""
    own = {"top": top} if top != 5 else {}
    named = {"decoder": decoder} if decoder != "ln_f" else {}
    if asked.in_memory:
        patterns = {"attention": True} if attention else {}
        return asked.repeat("lens", **named, **own, **patterns)
    words = [f"--{name}={value}" for name, value in (*named.items(), *own.items())]
    words += ["--attention"] * attention
    return lens_command(asked.path, asked.ports, asked.options, *words, *more)


def _with_its_head(checkpoint: Checkpoint) -> Tensors:
    """The lens multiplies with what is called wte: in an untied model, with its head."""
    tensors, head = checkpoint.tensors, checkpoint.config.head
    return tensors if head == "wte" else OtherLookup(tensors, tensors[head])


def _decoder(name: str, checkpoint: Checkpoint) -> Decoder:
    """What ``--decoder`` names."""
    weights, config = checkpoint.tensors, checkpoint.config
    if name == "ln_f":
        return LnF(weights)
    if name == "none":
        return WithoutLnF()
    kind, _, block = name.partition(":")
    if kind == "block":
        try:
            return FromBlock(weights, config, int(block))
        except ValueError:
            raise UsageError(
                f"--decoder {name}: there is no such block; the model has 0 … {config.n_layer - 1}"
            ) from None
    if not Path(name).is_file():
        raise UsageError(f"--decoder {name}: not ln_f, none, block:J, or the file of a tuned lens")
    return read_tuned(Path(name), weights, config)


def _read_port(
    spec: str,
    asked: Request,
    show: Callable[[Port], Seen],
    read: Callable[[Seen], dict[str, Any]],
) -> Reading:
    """One port. Whatever it raises ends up in ``error``."""
    made = Reading(spec, asked.options.dtype or "float32", asked.options.device)
    try:
        port = asked.builder(spec)()
        made = Reading(port.name, port.dtype, port.device, port.provenance())
        try:
            found = show(port)
        finally:
            made = replace(made, weights_from=port.provenance())
            port.close()
        ends = state_sites(asked.checkpoint.config)
        shown = [site for site, _ in found.states]
        if not shown or (shown[0], shown[-1]) != (ends[0], ends[-1]):
            what = ", ".join(site for site in (ends[0], ends[-1]) if site not in shown)
            raise PortError(f"{what}: not shown by the port, and there is no lens without")
        return replace(made, **read(found))
    except GptVerifyError as e:
        return replace(made, error=_named(made.name, str(e)), exception=e)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        return replace(made, error=_named(made.name, described(e)), exception=e)


def _named(name: str, complaint: str) -> str:
    return complaint if complaint.startswith(name) else f"{name}: {complaint}"


def _texts(
    checkpoint: Checkpoint, tokens_T: Tokens, lenses: Iterable[Lens]
) -> tuple[str, dict[int, str]]:
    """What was read, as text, and every id that occurs as a visible token."""
    ids = {int(token) for token in tokens_T}
    for read in lenses:
        ids |= {int(token) for token in np.unique(read.top_ids)} - {UNDEFINED}
    if not checkpoint.has_vocabulary:
        return " ".join(map(str, tokens_T)), {token: numbered(token) for token in ids}
    from gpt_verify.checkpoint.vocabulary import pieces

    known = pieces(checkpoint)
    names = {t: visible(known[t]) if t in known else numbered(t) for t in ids}
    text = b"".join(known.get(int(token), b"\xff") for token in tokens_T)
    return text.decode(errors="replace"), names
