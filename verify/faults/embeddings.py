"""Faults of the embeddings: which row of which table, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_verify.faults.fault import Fault, InModel, of_operations
from gpt_verify.faults.inject import replace
from gpt_verify.faults.later import torch
from gpt_verify.graph.call import Call, Override
from gpt_verify.graph.run import right
from gpt_verify.reference.ops import Array, layer_norm

Ids = NDArray[np.integer]

#: Where positions begin again, or stop: seen in longer sequences.
CHUNK = 16


def _embeddings(
    name: str, summary: str, act: Override, in_torch: Any, seen: str = "", **more: Any
) -> Fault:
    """``in_torch(model, ids, positions)`` → [B, T, D]."""

    def inject(model: Any, layers: object) -> None:
        replace(model, "embed", in_torch)

    more = {"of": lambda config: config.keys.table, "layered": False, **more}
    return of_operations(name, "embeddings", summary, seen, {"embed": act}, inject, **more)


def _sum(call: Call, tokens_T: Ids, positions_T: Ids) -> Array:
    value: Array = call.w("wte")[tokens_T] + call.w("wpe")[positions_T]
    return value


def _torch_sum(model: Any, ids: Any, positions: Any) -> Any:
    look_up = torch.nn.functional.embedding
    return look_up(ids, model.wte) + look_up(positions, model.wpe)


def _positions(
    name: str,
    summary: str,
    change: Callable[[Ids, int], Ids],
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """Rows of wpe other than the correct ones.

    Args:
        change: positions [T] and n_ctx → rows.
        in_torch: the model and positions → rows.
    """

    def act(call: Call) -> Array:
        places_T = np.arange(len(call.tokens_T))
        return _sum(call, call.tokens_T, change(places_T, call.config.n_ctx))

    def embed(model: Any, ids: Any, positions: Any) -> Any:
        return _torch_sum(model, ids, in_torch(model, positions))

    return _embeddings(name, summary, act, embed, seen, **more)


def _offset(name: str, summary: str, by: int, seen: str = "") -> Fault:
    return _positions(
        name,
        summary,
        lambda places, n_ctx: np.minimum(places + by, n_ctx - 1),
        lambda model, positions: (positions + by).clamp(max=model.config.n_ctx - 1),
        seen,
    )


def _tokens(
    name: str,
    summary: str,
    change: Callable[[Ids, int], Ids],
    in_torch: Callable[[Any, Any], Any],
    seen: str = "",
    **more: Any,
) -> Fault:
    """Rows of wte other than the correct ones: ``change(ids, n_vocab)``, ``in_torch(model,
    ids)``."""

    def act(call: Call) -> Array:
        rows_T = change(call.tokens_T, call.config.n_vocab)
        return _sum(call, rows_T, np.arange(len(rows_T)))

    def embed(model: Any, ids: Any, positions: Any) -> Any:
        return _torch_sum(model, in_torch(model, ids), positions)

    return _embeddings(name, summary, act, embed, seen, **more)


def _weighted(token: Callable[[Call], float], position: float, call: Call) -> Array:
    wte_TD = call.w("wte")[call.tokens_T] * token(call)
    value: Array = wte_TD + position * call.w("wpe")[: len(call.tokens_T)]
    return value


def _sinusoids(length: int, width: int, dtype: type[np.floating]) -> Array:
    """Vaswani et al. 2017, section 3.5: even channels sine, odd ones cosine. In the call's own
    format: what rounding does to a large angle is part of the mistake."""
    channels_D = np.arange(width)
    exponents_D = ((channels_D - channels_D % 2) / width).astype(dtype)
    angle_TD = np.arange(length, dtype=dtype)[:, None] / dtype(10000.0) ** exponents_D
    value: Array = np.where(channels_D % 2 == 0, np.sin(angle_TD), np.cos(angle_TD))
    return value


def _sinusoidal(call: Call) -> Array:
    table_TD = _sinusoids(len(call.tokens_T), call.config.n_embd, call.dtype)
    value: Array = call.w("wte")[call.tokens_T] + table_TD
    return value


def _torch_sinusoidal(model: Any, ids: Any, positions: Any) -> Any:
    width, tokens = model.wte.shape[1], torch.nn.functional.embedding(ids, model.wte)
    steps = torch.arange(0, width, 2, dtype=tokens.dtype, device=ids.device)
    angle = positions[..., None] * torch.pow(10000.0, -steps / width)
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return tokens + waves[..., :width]


def _padded(call: Call) -> Array:
    wte_TD = call.w("wte")[call.tokens_T]
    wte_TD[call.tokens_T == 0] = 0
    value: Array = wte_TD + call.w("wpe")[: len(wte_TD)]
    return value


def _torch_padded(model: Any, ids: Any, positions: Any) -> Any:
    look_up = torch.nn.functional.embedding
    tokens = look_up(ids, model.wte)
    return tokens.masked_fill((ids == 0)[..., None], 0.0) + look_up(positions, model.wpe)


def _first_nowhere(call: Call) -> Array:
    table_TD = call.w("wpe")[: len(call.tokens_T)].copy()
    table_TD[0] = 0
    value: Array = call.w("wte")[call.tokens_T] + table_TD
    return value


def _torch_first_nowhere(model: Any, ids: Any, positions: Any) -> Any:
    table = torch.cat([torch.zeros_like(model.wpe[:1]), model.wpe[1:]])
    look_up = torch.nn.functional.embedding
    return look_up(ids, model.wte) + look_up(positions, table)


def _normalised(call: Call) -> Array:
    one_D = np.ones(call.config.n_embd, call.dtype)
    return layer_norm(right(call), one_D, 0 * one_D)


def _torch_normalised(model: Any, ids: Any, positions: Any) -> Any:
    x = _torch_sum(model, ids, positions)
    return torch.nn.functional.layer_norm(x, x.shape[-1:])


def _of_one_type(call: Call) -> Array:
    value: Array = right(call) + call.w("wte")[0]
    return value


def _torch_of_one_type(model: Any, ids: Any, positions: Any) -> Any:
    types = torch.nn.functional.embedding(torch.zeros_like(ids), model.wte)
    return _torch_sum(model, ids, positions) + types


def _exchanged(ids: Ids, n_vocab: int) -> Ids:
    last = n_vocab - 1
    return np.where(ids == 0, last, np.where(ids == last, 0, ids))


def _torch_exchanged(model: Any, ids: Any) -> Any:
    rows = torch.arange(model.config.n_vocab, device=ids.device)
    rows[[0, -1]] = rows[[-1, 0]]
    return rows[ids]


def _torch_late(model: Any, ids: Any) -> Any:
    return torch.nn.functional.pad(ids, (1, 0), value=model.config.n_vocab - 1)[:, :-1]


def _torch_dropout(model: Any, ids: Any, positions: Any) -> Any:
    return torch.nn.functional.dropout(_torch_sum(model, ids, positions), 0.1, training=True)


def _inject_dropout(model: Any, layers: object) -> None:
    replace(model, "embed", _torch_dropout)


FAULTS = (
    _embeddings(
        "embeddings-no-positions",
        "adds no positions",
        lambda call: call.w("wte")[call.tokens_T],
        lambda model, ids, positions: torch.nn.functional.embedding(ids, model.wte),
    ),
    _offset("embeddings-positions-from-1", "counts positions from 1", 1, "position_ids + 1"),
    _offset(
        "embeddings-positions-from-2",
        "counts positions from 2",
        2,
        "OPTLearnedPositionalEmbedding of transformers, whose offset is 2",
    ),
    _positions(
        "embeddings-positions-late",
        "gives the second token the first position again, and so on",
        lambda places, n_ctx: np.maximum(places - 1, 0),
        lambda model, positions: (positions - 1).clamp(min=0),
        "attention_mask.cumsum(-1) - 1 of a mask that counts one token too few",
    ),
    _positions(
        "embeddings-positions-restarted",
        f"begins to count again every {CHUNK} tokens",
        lambda places, n_ctx: places % CHUNK,
        lambda model, positions: positions - positions // CHUNK * CHUNK,
        "positions counted within a chunk of a longer text",
        needs=f"more than {CHUNK} tokens",
    ),
    _positions(
        "embeddings-positions-clipped",
        f"gives every token from the {CHUNK}th on the same position",
        lambda places, n_ctx: np.minimum(places, CHUNK - 1),
        lambda model, positions: positions.clamp(max=CHUNK - 1),
        needs=f"more than {CHUNK} tokens",
    ),
    _positions(
        "embeddings-positions-reversed",
        "counts positions from the end",
        lambda places, n_ctx: places[::-1],
        lambda model, positions: positions.flip(-1),
    ),
    _embeddings(
        "embeddings-positions-twice",
        "adds the positions twice",
        partial(_weighted, lambda call: 1.0, 2.0),
        lambda model, ids, positions: (
            _torch_sum(model, ids, positions) + torch.nn.functional.embedding(positions, model.wpe)
        ),
        "inputs_embeds that hold the positions already",
    ),
    _embeddings(
        "embeddings-sinusoidal",
        "adds sines and cosines of the position in place of wpe",
        _sinusoidal,
        _torch_sinusoidal,
        "the positions of the original transformer",
    ),
    _embeddings(
        "embeddings-scaled",
        "multiplies the token's row by √D",
        partial(_weighted, lambda call: float(np.sqrt(call.config.n_embd)), 1.0),
        lambda model, ids, positions: (
            torch.nn.functional.embedding(positions, model.wpe)
            + model.wte.shape[1] ** 0.5 * torch.nn.functional.embedding(ids, model.wte)
        ),
        "the embedding of the original transformer, and of Gemma",
    ),
    _embeddings(
        "embeddings-normalised",
        "normalises the sum of both rows",
        _normalised,
        _torch_normalised,
        "word_embeddings_layernorm of BLOOM in transformers",
    ),
    _embeddings(
        "embeddings-token-types",
        "adds the row of token 0 to every token, as its type",
        _of_one_type,
        _torch_of_one_type,
        "token_type_ids of transformers' modeling_gpt2.py, which are looked up in wte",
    ),
    _embeddings(
        "embeddings-padding-row",
        "takes token 0 for padding, and looks up zeros for it",
        _padded,
        _torch_padded,
        "nn.Embedding(…, padding_idx=0)",
        needs="token 0 in the text",
    ),
    _embeddings(
        "embeddings-first-position-zero",
        "looks up zeros for the first position",
        _first_nowhere,
        _torch_first_nowhere,
        "nn.Embedding(…, padding_idx=0) for the positions",
    ),
    Fault(
        "embeddings-dropout",
        "embeddings",
        "drops a tenth of the embeddings by chance, as in training",
        "a model that was not put into evaluation mode",
        InModel(_inject_dropout, layered=False),
        law="determinism",
    ),
    _tokens(
        "embeddings-rows-exchanged",
        "exchanges the rows of the first token and the last, <|endoftext|>",
        _exchanged,
        _torch_exchanged,
        "vocabularies that keep their special token first",
        needs="one of the two tokens in the text",
    ),
    _tokens(
        "embeddings-tokens-late",
        "reads <|endoftext|> first, and each token one place later",
        lambda ids, n_vocab: np.concatenate([[n_vocab - 1], ids[:-1]]),
        _torch_late,
        "shift_tokens_right of transformers' encoder-decoder models",
    ),
)
