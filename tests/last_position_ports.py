"""Ports that return the logits of the last position only, as code for generation does: correct
ones, and some that are wrong in one way each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from broken_ports import _correct
from torch.nn import functional as F
from torch_styles import FusedBlock, Model

from gpt_verify.checkpoint import Checkpoint
from gpt_verify.port import Port

Function = Callable[[Any], Any]


def _last(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Checkpoint], Function]:
    """A function of which a part of the correct logits is left."""

    def factory(checkpoint: Checkpoint) -> Function:
        return lambda tokens: change(_correct(checkpoint, tokens))

    return factory


one_position = _last(lambda x: x[:, -1:])
no_position = _last(lambda x: x[:, -1])
all_positions = _last(lambda x: x)
# Wrong.
first_position = _last(lambda x: x[:, :1])
one_before = _last(lambda x: x[:, max(0, x.shape[1] - 2)])
first_row = _last(lambda x: np.repeat(x[:1, -1], len(x), axis=0))
many_rows = _last(lambda x: x[::-1, -1] if len(x) > 2 else x[:, -1])
long_ones = _last(lambda x: x[:, -1] * (1.01 if x.shape[1] > 12 else 1))


def wrapped(checkpoint: Checkpoint) -> Function:
    """What the report says to do, of a correct one."""
    port = one_position(checkpoint)
    return lambda tokens: np.stack(
        [
            np.asarray(port(tokens[:, :n])).reshape(len(tokens), -1)
            for n in range(1, tokens.shape[1] + 1)
        ],
        axis=1,
    )


class Headed(Model):
    """The head reads the last position alone, before the last norm or after it."""

    before_norm = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, FusedBlock)

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.states(ids)
        if self.before_norm:
            return self.head(self.final_norm(x[:, -1]))
        return self.head(self.final_norm(x)[:, [-1]]), None


class Early(Headed):
    before_norm = True


class ExactGelu(Headed):
    """Wrong in its activation."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        for block in self.blocks:
            block.mlp = lambda x, b=block: b.fc_out(F.gelu(b.fc_in(x)))


class OtherHead(Headed):
    """Wrong in its head alone."""

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.final_norm(self.states(ids))[:, [-1]]) * 1.001


class Targets(Headed):
    """All logits and the loss where targets are given, which are shifted by who calls; otherwise
    those of the last position. As nanoGPT, whose ignored label is -1."""

    ignored = -1

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.final_norm(self.states(ids))
        if targets is None:
            return self.generating(x), None
        logits = self.head(x)
        return logits, self.loss(logits, targets)

    def generating(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, [-1], :])

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=self.ignored
        )


class TargetsFirst(Targets):
    """Wrong only where it generates."""

    def generating(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, [0], :])


class TargetsSum(Targets):
    """Wrong in its loss: a sum over the batch, not a mean."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(logits, targets) * len(targets)


class TargetsGathered(Targets):
    """Targets are indices, and -1 is the last one."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        of_all = logits.log_softmax(-1).flatten(0, 1)
        return -of_all[torch.arange(len(of_all)), targets.flatten()].mean()


class TargetsDefault(Targets):
    """The ignored label of ``cross_entropy``."""

    ignored = -100


class TargetsShifted(Targets):
    """Targets are the tokens, and shifted within."""

    ignored = -100

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().loss(logits[:, :-1], targets[:, 1:])


class TargetsAlways(Targets):
    """All logits in any case; the targets are for the loss alone."""

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = self.head(self.final_norm(self.states(ids)))
        return logits, None if targets is None else self.loss(logits, targets)


class Sited(Port):
    """A port that shows its sites, those after the last block at the last position only."""

    dtype = "float64"
    late = ("ln_f", "logits")
    change: Callable[[str, np.ndarray], np.ndarray] = staticmethod(lambda site, x: x)

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name, self.checkpoint = type(self).__name__, checkpoint

    def logits(self, tokens: Any) -> Any:
        return self.activations(tokens, lambda site, value, narrowest=None: None)

    def activations(self, tokens: Any, visit: Any) -> Any:  # type: ignore[override]
        from gpt_verify.reference.model import forward

        runs = [forward(self.checkpoint.tensors, self.checkpoint.config, row) for row in tokens]
        value = None
        for row in zip(*runs, strict=True):
            site, value = row[0][0], np.stack([x for _, x in row])
            if site in self.late:
                value = self.change(site, value[:, -1:])
            visit(site, value)
        return value

    @contextmanager
    def float64(self) -> Iterator[Port]:  # type: ignore[override]
        yield self


class SitedWrong(Sited):
    """A last norm that is wrong."""

    change = staticmethod(lambda site, x: x * (1 + 1e-9) if site == "ln_f" else x)


class Caching(Model):
    """A cache under one name, which comes back at the end of a tuple."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, FusedBlock)
        self.n_ctx = checkpoint.config.n_ctx

    def cached(
        self, ids: torch.Tensor, past: Any, at: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[Any]]:
        start = 0 if past is None else past[0][0].shape[2]
        places = torch.arange(start, start + ids.shape[1])
        if places[-1] >= self.n_ctx:
            raise ValueError("too long")
        x, kept = self.wte(ids) + self.wpe(places if at is None else at), []
        for i, block in enumerate(self.blocks):
            y = block.ln_1(x)
            q, k, v = (block.split(part) for part in block.qkv(y).chunk(3, dim=-1))
            if past is not None:
                k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
            kept.append((k, v))
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(self.seen(start))
            mix = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + block.out_proj(mix.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x))
        return self.head(self.final_norm(x)), kept

    def seen(self, start: int) -> int:
        return start


class Past(Caching):
    def forward(self, ids: torch.Tensor, past: Any = None) -> Any:
        return self.cached(ids, past)


class PastWrong(Past):
    """Wrong: the mask does not know of what is in the cache."""

    def seen(self, start: int) -> int:
        return 0


class PastKeyValues(Caching):
    """Without use_cache, by name, and with positions that whoever calls must give."""

    def forward(
        self, ids: torch.Tensor, position_ids: Any = None, past_key_values: Any = None
    ) -> Any:
        at = torch.arange(ids.shape[1]) if position_ids is None else position_ids
        logits, kept = self.cached(ids, past_key_values, at)
        return {"logits": logits, "presents": kept}


class KvCache(Caching):
    """Only asked for."""

    def forward(self, ids: torch.Tensor, kv_cache: Any = None, use_cache: bool = False) -> Any:
        logits, kept = self.cached(ids, kv_cache)
        return (logits, kept) if use_cache else logits


class KvCacheTargets(Caching):
    """Beside targets, without which the logits are those of the last position."""

    def forward(self, ids: torch.Tensor, targets: Any = None, kv_cache: Any = None) -> Any:
        logits, kept = self.cached(ids, kv_cache)
        if targets is None:
            return logits[:, [-1]], None, kept
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss, kept


class Placed(Caching):
    """Who calls must say where the tokens are, in words of its own: not examined."""

    def forward(self, ids: torch.Tensor, start_pos: int = 0, kv_cache: Any = None) -> Any:
        return self.cached(ids, kv_cache, torch.arange(start_pos, start_pos + ids.shape[1]))


class Object(Caching):
    """The cache is an object that who calls must make: not examined."""

    def forward(self, ids: torch.Tensor, kv_cache: Any = None) -> Any:
        return self.cached(ids, None if kv_cache is None else kv_cache.get())[0]


class Otherwise(Caching):
    """What comes out is not what goes in: not examined."""

    def forward(self, ids: torch.Tensor, kv_cache: Any = None) -> Any:
        logits, kept = self.cached(ids, None if kv_cache is None else kv_cache.get())
        return logits, kept
