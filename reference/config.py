"""The five numbers that make a GPT-2, and a refusal of the ones that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


class ConfigError(ValueError):
    """The sizes are impossible, incomplete, or not those of a GPT-2."""


#: Far above any GPT-2 (1558M: 48 layers of 1600), and low enough that a damaged file is refused
#: before memory is taken for it.
LARGEST = {
    "n_vocab": 1 << 24,
    "n_ctx": 1 << 20,
    "n_embd": 1 << 16,
    "n_head": 1 << 12,
    "n_layer": 1 << 12,
}


@dataclass(frozen=True)
class Config:
    """Sizes of a GPT-2, under the names of OpenAI's ``hparams.json`` (gpt-2 ``src/model.py:5``).

    Raises:
        ConfigError: a size is not a positive integer, is absurdly large, or heads do not divide
            the width.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} = {value!r} is not an integer")
            if not 1 <= value <= largest:
                raise ConfigError(f"{name} = {value} is outside 1 … {largest}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @classmethod
    def from_mapping(cls, sizes: Mapping[str, object]) -> Config:
        """Read ``hparams.json``; a missing or an unknown key is refused by name."""
        known = {field.name for field in fields(cls)}
        if missing := sorted(known - set(sizes)):
            raise ConfigError(f"missing: {', '.join(missing)}")
        if unknown := sorted(set(sizes) - known):
            raise ConfigError(f"unknown key: {', '.join(unknown)}")
        return cls(**sizes)  # type: ignore[arg-type]  # __post_init__ refuses what is not an integer

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


#: The four released sizes (gpt-2 ``hparams.json`` of each model; Radford et al. 2019, table 2).
RELEASED = {
    "124M": Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12),
    "355M": Config(n_vocab=50257, n_ctx=1024, n_embd=1024, n_head=16, n_layer=24),
    "774M": Config(n_vocab=50257, n_ctx=1024, n_embd=1280, n_head=20, n_layer=36),
    "1558M": Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48),
}
