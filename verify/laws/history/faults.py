"""Faults of what a port keeps from one call to the next: each call is right by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.faults.fault import AroundPort, Fault, InModel
from gpt_verify.faults.inject import wrap
from gpt_verify.faults.later import torch
from gpt_verify.port import STEP

#: By how many first tokens a cache of prompts knows them, and how many tokens it keeps together.
KEY, BLOCK = 4, 8


def _position_left(model: Any, layers: Sequence[int]) -> None:
    """Where a run with a cache ended, the next one without begins."""

    def forward(self: Any, right: Any, ids: Any, *args: Any, **more: Any) -> Any:
        kept = more.get("past_key_values")
        if more.get("use_cache"):
            self.tokens_so_far = (0 if kept is None else kept[0][0].shape[-2]) + ids.shape[1]
        elif more.get("position_ids") is None and more.get("attention_mask") is None:
            begins = getattr(self, "tokens_so_far", 0)
            at = torch.arange(begins, begins + ids.shape[1], device=ids.device)
            more["position_ids"] = (at % self.config.n_ctx)[None]
        return right(ids, *args, **more)

    wrap(model, "forward", forward)


def _mask_left(model: Any, layers: Sequence[int]) -> None:
    """A mask stays for whoever has as many tokens, and hands over none."""

    def forward(self: Any, right: Any, ids: Any, *args: Any, **more: Any) -> Any:
        plain = not more.get("use_cache") and more.get("position_ids") is None
        if more.get("attention_mask") is not None:
            self.last_mask = more["attention_mask"]
        elif plain and getattr(self, "last_mask", None) is not None:
            if self.last_mask.shape == ids.shape:
                more["attention_mask"] = self.last_mask
            self.last_mask = None
        return right(ids, *args, **more)

    wrap(model, "forward", forward)


def _position_of_refused(model: Any, layers: Sequence[int]) -> None:
    """A call notes how far it has come, and sets that back at its end, which a refused one does not
    reach."""

    def embed(self: Any, right: Any, ids: Any, at: Any) -> Any:
        begins, self.begins = getattr(self, "begins", 0), ids.shape[1]
        made = right(ids, (at + begins) % self.config.n_ctx)
        self.begins = 0
        return made

    wrap(model, "embed", embed)


def _batch_left(port: Any, checkpoint: Checkpoint) -> None:
    """One row that follows a batch of rows as long as itself is added to it as its last."""
    right = port.logits
    kept: list[Any] = [None]

    def logits(tokens: Any) -> Any:
        made = np.array(right(tokens))
        before, kept[0] = kept[0], made if len(tokens) > 2 else None
        if before is not None and len(tokens) == 1 and before.shape[1:] == made.shape[1:]:
            return np.array(before[-1:])
        return made

    port.logits = logits


def _prompt_stale(port: Any, checkpoint: Checkpoint) -> None:
    """A block is known by its first tokens alone."""
    right, step, last = port.logits, port.offers()[STEP], [np.zeros((1, 0), np.int64)]

    def logits(tokens: Any) -> Any:
        before, tokens = last[0], np.asarray(tokens)
        if len(tokens) != 1:
            return right(tokens)
        last[0] = tokens.copy()
        enough = min(before.shape[1], tokens.shape[1] - 1) >= BLOCK
        if not enough or (before[:, :KEY] != tokens[:, :KEY]).any():
            return right(tokens)
        if (before[:, :BLOCK] == tokens[:, :BLOCK]).all():
            return right(tokens)
        first, cache = step(before[:, :BLOCK], None)
        return np.concatenate([first, step(tokens[:, BLOCK:], cache)[0]], axis=1)

    port.logits = logits


def _same_memory(port: Any, checkpoint: Checkpoint) -> None:
    right = port.logits
    kept: list[Any] = [None, None]

    def logits(tokens: Any) -> Any:
        if tokens is not kept[0]:
            kept[:] = tokens, np.array(right(tokens))
        return np.array(kept[1])

    port.logits = logits


FAULTS = (
    Fault(
        "history-after-cache",
        "history",
        "begins a run without a cache at the position at which a run with one has ended",
        "rasbt/LLMs-from-scratch#1048",
        InModel(_position_left, layered=False),
        law="history",
    ),
    Fault(
        "history-after-mask",
        "history",
        "uses the mask of the last padded run for the next one that hands over none",
        inject=InModel(_mask_left, layered=False),
        law="history",
        needs="a context of one token has no padding",
    ),
    Fault(
        "history-after-refusal",
        "history",
        "keeps the position at which a call broke off that it refused",
        inject=InModel(_position_of_refused, layered=False),
        law="history",
    ),
    Fault(
        "history-after-batch",
        "history",
        "returns the last row of a batch once more for a single row that follows it",
        inject=AroundPort(_batch_left),
        law="history",
    ),
    Fault(
        "history-prompt-stale",
        "history",
        f"uses the keys and values of an earlier prompt for another one that begins with the same "
        f"{KEY} tokens",
        "vllm-mlx#444, openvinotoolkit/openvino.genai#3722",
        AroundPort(_prompt_stale),
        law="history.prompts",
        needs=f"a context of no more than {BLOCK} tokens has no block that could be kept",
    ),
    Fault(
        "history-same-memory",
        "history",
        "returns what it has computed before where the tokens lie in the same memory",
        inject=AroundPort(_same_memory),
        law="history.prompts",
    ),
)
