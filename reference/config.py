"""What makes a model: five sizes and an architecture, and a refusal of the ones that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class ConfigError(ValueError):
    """The sizes are impossible, incomplete, or not those of a GPT-2."""


@dataclass(frozen=True)
class Architecture:
    """In what one family of models differs from another, whatever the sizes.

    Attributes:
        norm_first: a block is x + f(ln(x)) where true, ln(x + f(x)) where false.
        norm_last: a layer norm of its own, ``ln_f``, stands before the head.
    """

    norm_first: bool
    norm_last: bool


#: Under the names of Hugging Face's ``model_type``. Radford et al. 2019, section 2.3, say in what
#: GPT-2 departs from GPT (Radford et al. 2018, equation 2): layer norm was moved to the input of
#: each sub-block, and one was added after the last.
ARCHITECTURES = {
    "gpt2": Architecture(norm_first=True, norm_last=True),
    "openai-gpt": Architecture(norm_first=False, norm_last=False),
}


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
    """Sizes, under the names of OpenAI's ``hparams.json`` (gpt-2 ``src/model.py:5``), and the rest.

    Attributes:
        architecture: a key of ``ARCHITECTURES``.
        tied: the head is the table of tokens, ``wte``; otherwise a tensor of its own, ``lm_head``.

    Raises:
        ConfigError: a size is not a positive integer, is absurdly large, or heads do not divide
            the width; or there is no such architecture.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int
    architecture: str = "gpt2"
    tied: bool = True

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} = {value!r} is not an integer")
            if not 1 <= value <= largest:
                raise ConfigError(f"{name} = {value} is outside 1 … {largest}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(f"architecture = {self.architecture!r} is none of {known}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def norm_first(self) -> bool:
        return ARCHITECTURES[self.architecture].norm_first

    @property
    def norm_last(self) -> bool:
        return ARCHITECTURES[self.architecture].norm_last

    @property
    def head(self) -> str:
        """The tensor that the last product is taken with."""
        return "wte" if self.tied else "lm_head"

    @classmethod
    def from_mapping(
        cls, sizes: Mapping[str, object], architecture: str = "gpt2", tied: bool = True
    ) -> Config:
        """Read ``hparams.json``; a missing or an unknown key is refused by name."""
        if missing := sorted(set(LARGEST) - set(sizes)):
            raise ConfigError(f"missing: {', '.join(missing)}")
        if unknown := sorted(set(sizes) - set(LARGEST)):
            raise ConfigError(f"unknown key: {', '.join(unknown)}")
        # __post_init__ refuses what is not an integer.
        return cls(**sizes, architecture=architecture, tied=tied)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, int]:
        """The sizes alone, as ``hparams.json`` has them."""
        return {name: getattr(self, name) for name in LARGEST}


#: The four released sizes (gpt-2 ``hparams.json`` of each model; Radford et al. 2019, table 2).
RELEASED = {
    "124M": Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12),
    "355M": Config(n_vocab=50257, n_ctx=1024, n_embd=1024, n_head=16, n_layer=24),
    "774M": Config(n_vocab=50257, n_ctx=1024, n_embd=1280, n_head=20, n_layer=36),
    "1558M": Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48),
}

#: The released GPT (openai/finetune-transformer-lm ``train.py``: 40,478 tokens, 512 positions).
GPT1 = Config(40478, 512, 768, 12, 12, architecture="openai-gpt")
