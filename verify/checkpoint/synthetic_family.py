"""Random weights of any family in which nothing is degenerate.

As for GPT-2 (``gpt_verify.checkpoint.synthetic``), sizes are such that scores spread by about 2,
activations lie where they are curved, some gates are beyond their limits, experts are chosen by
different tokens, and logits spread by about 3. No gain is 1, and no bias 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gpt_verify.reference import Config, TensorSpec, tensor_table

#: Standard deviations that are aimed at, of logits, scores and what goes into an activation.
LOGITS, SCORES, ACTIVATED = 3.0, 2.5, 1.0
#: The same where an activation has limits at 7, of which some are then exceeded.
BEYOND = 3.5
GAIN, BIAS = 0.3, 0.3
#: By how much the blocks together multiply the variance of the residual stream, less one.
GROWTH = 5.0
#: Root mean square of what the last product of a branch reads, roughly.
READ = 0.6


class FamilyTensors(Mapping[str, NDArray[np.float32]]):
    """Lazy: each tensor is made when it is looked up, from the seed and its own name alone."""

    def __init__(self, config: Config, seed: int, scale: float = 1.0) -> None:
        self._config, self._seed, self._scale = config, seed, scale
        self._table = tensor_table(config)
        self._wte = LOGITS / math.sqrt(config.n_embd)
        stream = 1.0 if config.keys.norm_embed else self._wte * (config.embed_scale or 1.0)
        self._added = math.sqrt(GROWTH / (2 * config.n_layer)) * stream

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        spec = self._table[name]
        key = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:16]
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        z = random.standard_normal(spec.shape, np.float32)
        if spec.role == "gain":
            gain: NDArray[np.float32] = np.clip(1 + np.float32(GAIN) * z, 0.2, 1.8)
            return gain - np.float32(self._config.keys.norm.plus_one)
        z *= np.float32(self._deviation(spec) * self._scale)
        return z

    def own(self, name: str) -> NDArray[np.float32]:
        """Each look-up makes another one."""
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def _deviation(self, spec: TensorSpec) -> float:
        """Standard deviation of a tensor other than a gain."""
        config, (*_, last) = self._config, spec.name.split("attn/")[-1].split("mlp/")
        part = last.rpartition("/")[0].rpartition("/")[2]
        if spec.role == "embedding":
            return self._wte / (2 if spec.name == "wpe" else 1)
        if spec.role == "bias":
            out = part in ("o", "down", "c_proj")
            return BIAS * self._added if out else 1.0 if last == "sinks" else BIAS
        n_in = spec.shape[0]
        if part in ("o", "down", "c_proj"):
            return self._added / (READ * math.sqrt(n_in))
        if part in ("q", "k"):
            scale = config.keys.scale or 1 / math.sqrt(config.head_size)
            return math.sqrt(SCORES / (scale * math.sqrt(config.head_size)) / n_in)
        beyond = config.keys.activation == "swish_clamped" and part in ("gate", "up")
        return (BEYOND if beyond else ACTIVATED) / math.sqrt(n_in)
