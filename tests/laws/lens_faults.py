"""Lenses with one known mistake each, as people write them for transformers' GPT-2.

The first ones are mistakes of the code that reads the hidden states; the others are of the model
that hands them out. Each alters a port after it was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt_verify.port import LENS, Floats, Port, Tokens

#: Of each state, its number and how many there are: what the last product reads.
Decode = Callable[[Any, Tensor, int, int], Tensor]


def written(port: Port, decode: Decode, head: nn.Module | None = None, shift: int = 0) -> None:
    """A lens of one's own: the hidden states, decoded in some way.

    ``shift``: the states are taken for those of so many blocks later.
    """
    model = port.module  # type: ignore[attr-defined]
    read = head or model.lm_head

    def lens(tokens: Tokens) -> Iterator[tuple[str, Floats]]:
        with torch.no_grad():
            ids = torch.as_tensor(np.array(tokens))
            states = model(ids, output_hidden_states=True).hidden_states
            names = ["embed", *(f"h.{i}.resid_post" for i in range(len(states) - 1))]
            read_states = [states[max(0, n - shift)] for n in range(len(states))]
            logits = [
                read(decode(model.transformer, x, n, len(states)))
                for n, x in enumerate(read_states)
            ]
        return iter([(n, x.float().numpy()) for n, x in zip(names, logits, strict=True)])

    port.offer(LENS, lens)


def _right(body: Any, x: Tensor, n: int, count: int) -> Tensor:
    return x if n == count - 1 else body.ln_f(x)


def right(port: Port) -> None:
    """No mistake: the last of transformers' states is taken as it is."""
    written(port, _right)


def norm_on_every_state(port: Port) -> None:
    """ln_f is applied to the last hidden state, which has been through it."""
    written(port, lambda body, x, n, count: body.ln_f(x))


def no_norm(port: Port) -> None:
    """The states go to the head as they are."""
    written(port, lambda body, x, n, count: x)


def norm_without_gain(port: Port) -> None:
    """A layer norm without gain and bias, which many call *the* layer norm."""
    size = port.module.config.n_embd  # type: ignore[attr-defined]
    norm = nn.LayerNorm(size, elementwise_affine=False)
    written(port, lambda body, x, n, count: x if n == count - 1 else norm(x))


def norm_of_the_last_block(port: Port) -> None:
    """The last block's ln_2 in place of ln_f."""
    written(port, lambda body, x, n, count: x if n == count - 1 else body.h[-1].ln_2(x))


def norm_of_the_next_block(port: Port) -> None:
    """What the next block reads, its ln_1, in place of ln_f."""
    written(port, lambda body, x, n, count: x if n == count - 1 else body.h[n].ln_1(x))


def one_block_late(port: Port) -> None:
    """The embedding is forgotten in counting: a block's name is given to what went into it."""

    def decode(body: Any, x: Tensor, n: int, count: int) -> Tensor:
        return body.ln_f(x)

    written(port, decode, shift=1)


def head_of_its_own(port: Port) -> None:
    """The lens multiplies with a matrix that was tied once and has been trained apart."""
    model = port.module  # type: ignore[attr-defined]
    head = nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
    with torch.no_grad():
        apart = 0.1 * model.lm_head.weight.std() * torch.randn(head.weight.shape)
        head.weight.copy_(model.lm_head.weight + apart)
    written(port, _right, head.to(model.lm_head.weight.dtype))


def embedding_forgotten(port: Port) -> None:
    """The lens reads the blocks only."""
    right(port)
    whole = port.offers()[LENS]
    assert whole is not None
    port.offer(LENS, lambda tokens: (read for read in whole(tokens) if read[0] != "embed"))


# What hands the states out


def _handing_out(port: Port, change: Callable[[tuple[Tensor, ...], Any], Any]) -> None:
    model = port.module  # type: ignore[attr-defined]

    def after(module: Any, args: Any, output: Any) -> Any:
        if output.hidden_states is not None:
            output.hidden_states = tuple(change(output.hidden_states, module.transformer))
        return output

    model.register_forward_hook(after)


def handed_out_normed_twice(port: Port) -> None:
    """The model norms the last state once more before it hands it out."""
    _handing_out(port, lambda states, body: (*states[:-1], body.ln_f(states[-1])))


def handed_out_late(port: Port) -> None:
    """Each state is recorded after its block, and the embedding not at all."""
    _handing_out(port, lambda states, body: (*states[1:], states[-1]))


def handed_out_from_first_block(port: Port) -> None:
    """One state is missing: n_layer of them in place of n_layer + 1."""
    _handing_out(port, lambda states, body: states[1:])


def model_head_of_its_own(port: Port) -> None:
    """The model's head is another matrix than its embedding."""
    model = port.module  # type: ignore[attr-defined]
    weight = model.lm_head.weight.detach()
    apart = 0.1 * weight.std() * torch.randn(weight.shape)
    model.lm_head.weight = nn.Parameter((weight + apart).to(weight.dtype))
