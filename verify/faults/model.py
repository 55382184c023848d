"""A correct GPT-2 in torch in which every step is a method that a fault can replace.

Plain on purpose: no step is fused with another, so that each injected mistake is a line or two. It
takes what transformers' model takes (labels, cache, mask, positions), so that the faults of those
have a place to live. ``Options`` make the correct variants that must never be refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.reference.config import Config

Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Options:
    """Correct ways of writing the same model.

    Attributes:
        fused: torch's scaled_dot_product_attention in place of scores, softmax and mix.
        masked: what a masked score becomes; None takes the lowest finite number.
        padded_vocabulary: the logits are computed with this many rows more, and cut off again.
    """

    fused: bool = False
    masked: float | None = None
    padded_vocabulary: int = 0


class Norm(nn.Module):
    """Layer norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.eps = 1e-5

    def normalise(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normalise(x) + self.bias


class Linear(nn.Module):
    """x W + b with W [in, out]."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal self-attention with a cache."""

    def __init__(self, config: Config, options: Options) -> None:
        super().__init__()
        self.n_head, self.options = config.n_head, options
        #: Gathers scores and pattern while they are asked for.
        self.shown: list[tuple[Tensor, Tensor]] | None = None
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, H, T, K]."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.split(part) for part in qkv.chunk(3, dim=-1))
        return q, k, v

    def scale(self, q: Tensor) -> float:
        return 1.0 / math.sqrt(q.shape[-1])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)) * self.scale(q)

    def allowed(self, targets: Tensor, sources: Tensor) -> Tensor:
        """Which source a target may see: [T, S] from their places in the sequence."""
        return sources[None, :] <= targets[:, None]

    def mask(self, scores: Tensor, allowed: Tensor) -> Tensor:
        lowest = (
            torch.finfo(scores.dtype).min if self.options.masked is None else self.options.masked
        )
        return scores.masked_fill(~allowed, lowest)

    def softmax(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=-1)

    def mix(self, pattern: Tensor, v: Tensor) -> Tensor:
        return pattern @ v

    def extend(
        self, past: tuple[Tensor, Tensor] | None, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole sequence so far."""
        if past is None:
            return k, v
        return torch.cat([past[0], k], dim=-2), torch.cat([past[1], v], dim=-2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        if self.options.fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=self.scale(q))
        scores = self.mask(self.scores(q, k), allowed)
        pattern = self.softmax(scores)
        if self.shown is not None:
            self.shown.append((scores, pattern))
        return self.mix(pattern, v)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, real: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.heads(self.c_attn(x))
        k, v = present = self.extend(past, k, v)
        sources = torch.arange(k.shape[-2], device=x.device)
        allowed = self.allowed(sources[-x.shape[1] :], sources)
        if real is not None:
            # Padding still sees itself: a row of nothing but masked scores has no softmax.
            itself = torch.eye(len(sources), dtype=torch.bool, device=x.device)[-x.shape[1] :]
            allowed = (allowed & real[:, None, None, :].bool()) | itself
        return self.c_proj(self.merge(self.attend(q, k, v, allowed))), present


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def act(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: Config, options: Options) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(config.n_embd), Attention(config, options)
        self.ln_2, self.mlp = Norm(config.n_embd), MLP(config)

    def wire(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """How the parts of a block are joined."""
        x = x + attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, real: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        present: list[tuple[Tensor, Tensor]] = []

        def attend(y: Tensor) -> Tensor:
            out, kept = self.attn(y, past, real)
            present.append(kept)
            return out

        return self.wire(x, attend), present[-1]


class Model(nn.Module):
    """GPT-2 with its weights; every method can be replaced on the instance."""

    def __init__(self, config: Config, options: Options | None = None) -> None:
        super().__init__()
        self.config, self.options = config, options or Options()
        self.wte = nn.Parameter(torch.zeros(config.n_vocab, config.n_embd))
        self.wpe = nn.Parameter(torch.zeros(config.n_ctx, config.n_embd))
        self.h = nn.ModuleList(Block(config, self.options) for _ in range(config.n_layer))
        self.ln_f = Norm(config.n_embd)

    def blocks(self, layers: Sequence[int]) -> list[Any]:
        """Some of the blocks, to inject a fault into."""
        return [self.h[layer] for layer in layers]

    def norms(
        self, layers: Sequence[int], kinds: Sequence[str] = ("ln_1", "ln_2", "ln_f")
    ) -> list[Any]:
        """The norms of some of the blocks; the last one belongs to all blocks together."""
        norms = [getattr(block, k) for block in self.blocks(layers) for k in kinds if k != "ln_f"]
        whole = len(layers) == len(self.h) or "ln_1" not in kinds
        return [*norms, self.ln_f] if "ln_f" in kinds and whole else norms

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the checkpoint."""
        return {tensor_name(name): parameter for name, parameter in self.named_parameters()}

    def positions(self, ids: Tensor, past: int, real: Tensor | None) -> Tensor:
        """[B, T] or [T]: counted from the first token that is no padding."""
        if real is None:
            return torch.arange(past, past + ids.shape[1], device=ids.device)
        return (real.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        return F.embedding(ids, self.wte) + F.embedding(positions, self.wpe)

    def head(self, x: Tensor) -> Tensor:
        table = self.wte
        if self.options.padded_vocabulary:
            table = F.pad(table, (0, 0, 0, self.options.padded_vocabulary))
        return (x @ table.T)[..., : self.config.n_vocab]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the next token, in nats."""
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def states(self, streams: list[Tensor], normed: Tensor) -> list[Tensor]:
        """What is handed out as hidden states."""
        return [*streams[:-1], normed]

    def patterns(self, scores: list[Tensor], patterns: list[Tensor]) -> list[Tensor]:
        """What is handed out as attentions."""
        return patterns

    def resize_token_embeddings(self, rows: int) -> None:
        """Another number of rows in the table; new ones are zeros."""
        kept = self.wte.detach()[:rows]
        self.wte = nn.Parameter(F.pad(kept, (0, 0, 0, rows - len(kept))))
        self.config = replace(self.config, n_vocab=rows)

    def next_logits(self, ids: Tensor, mask: Tensor | None, made: int) -> Tensor:
        """Of the token after these, [B, V]; ``made`` of them were generated."""
        logits: Tensor = self(ids, attention_mask=mask)["logits"][:, -1]
        return logits

    def ended(self, token: Tensor, end: int | None) -> Tensor:
        """Which rows end with this token, bool[B]."""
        return torch.zeros_like(token, dtype=torch.bool) if end is None else token == end

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        do_sample: bool = False,
        attention_mask: Tensor | None = None,
        eos_token_id: int | None = None,
    ) -> Tensor:
        """The likeliest token each time; rows that have ended are filled with token 0."""
        done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for made in range(max_new_tokens):
            with torch.no_grad():
                logits = self.next_logits(ids, attention_mask, made)
            token = logits.argmax(-1).masked_fill(done, 0)
            done |= self.ended(token, eos_token_id)
            ids = torch.cat([ids, token[:, None]], dim=1)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
            if done.all():
                break
        return ids

    def divided(self, loss: Tensor, labels: Tensor, items: Tensor) -> Tensor:
        """The sum over the predictions of this batch, divided by those of all batches of a step."""
        return loss * (labels[:, 1:] != -100).sum() / items

    def forward(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> dict[str, Any]:
        length = 0 if past_key_values is None else past_key_values[0][0].shape[-2]
        if length + ids.shape[1] > self.config.n_ctx:
            raise IndexError(f"{length + ids.shape[1]} tokens, n_ctx is {self.config.n_ctx}")
        if position_ids is None:
            position_ids = self.positions(ids, length, attention_mask)
        x = self.embed(ids, position_ids)
        presents: Cache = []
        # A block may write to what it is handed.
        streams = [x.clone()] if output_hidden_states else []
        kept: list[tuple[Tensor, Tensor]] = []
        for layer, block in enumerate(self.h):
            past = None if past_key_values is None else past_key_values[layer]
            block.attn.shown = kept if output_attentions else None
            x, present = block(x, past, attention_mask)
            block.attn.shown = None
            presents.append(present)
            streams += [x.clone()] if output_hidden_states else []
        normed = self.ln_f(x)
        logits = self.head(normed)
        output: dict[str, Any] = {"logits": logits}
        if output_hidden_states:
            output["hidden_states"] = self.states(streams, normed)
        if output_attentions and kept:
            scores, patterns = (list(parts) for parts in zip(*kept, strict=True))
            output["attentions"] = self.patterns(scores, patterns)
        if use_cache:
            output["past_key_values"] = presents
        if labels is not None:
            output["loss"] = self.loss(logits, labels)
            if num_items_in_batch is not None:
                output["loss"] = self.divided(output["loss"], labels, num_items_in_batch)
        return output


def build(checkpoint: Checkpoint, options: Options | None = None) -> Model:
    """The model with a checkpoint's weights; ``module(ids)["logits"]``."""
    model = Model(checkpoint.config, options)
    with torch.no_grad():
        for name, parameter in model.tensors().items():
            parameter.copy_(torch.from_numpy(np.array(checkpoint.tensors[name])))
    return model.eval()


def tensor_name(parameter: str) -> str:
    """``h.0.attn.c_attn.weight`` → ``h0/attn/c_attn/w``."""
    parts = parameter.split(".")
    if parts[0] == "h":
        parts[:2] = [f"h{parts[1]}"]
    if len(parts) > 1:
        norm = parts[-2].startswith("ln")
        parts[-1] = "b" if parts[-1] == "bias" else "g" if norm else "w"
    return "/".join(parts)
