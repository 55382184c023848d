"""What makes a model: five sizes and an architecture, and a refusal of the ones that cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gpt_verify.reference.architecture import Architecture, ConfigError, Rope

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
        architecture: a key of ``ARCHITECTURES``, or the name of a family whose ``keys`` are given.
        tied: the head is the table of tokens, ``wte``; otherwise a tensor of its own, ``lm_head``.
        own: the keys of a model whose family leaves some of them open; None for those of
            ``ARCHITECTURES``.

    Raises:
        ConfigError: a size is not a positive integer, is absurdly large, or heads do not divide
            the width; the keys are not possible with these sizes; or there is no such architecture.
    """

    n_vocab: int
    n_ctx: int
    n_embd: int
    n_head: int
    n_layer: int
    architecture: str = "gpt2"
    tied: bool = True
    own: Architecture | None = None

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} = {value!r} is not an integer")
            if not 1 <= value <= largest:
                raise ConfigError(f"{name} = {value} is outside 1 … {largest}")
        if self.own is None and self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ConfigError(f"architecture = {self.architecture!r} is none of {known}")
        self.keys.check(self.n_embd, self.n_head, self.n_layer)

    @property
    def keys(self) -> Architecture:
        """What the model does otherwise than others."""
        return self.own or ARCHITECTURES[self.architecture]

    @property
    def head_size(self) -> int:
        """K."""
        return self.keys.size or self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """G."""
        return self.keys.n_kv or self.n_head

    @property
    def n_inner(self) -> int:
        """F."""
        return self.keys.inner(self.n_embd)

    @property
    def embed_scale(self) -> float | None:
        """What the rows of the tokens are multiplied with; None for nothing."""
        return math.sqrt(self.n_embd) if self.keys.scale_embed else None

    @property
    def norm_first(self) -> bool:
        return self.keys.norm_first

    @property
    def norm_last(self) -> bool:
        return self.keys.norm_last

    def window(self, layer: int) -> int | None:
        """W of a layer."""
        return self.keys.windows[layer % len(self.keys.windows)]

    def rope(self, layer: int) -> Rope | None:
        """How a layer's queries and keys are turned."""
        return self.keys.ropes[layer % len(self.keys.ropes)]

    @property
    def head(self) -> str:
        """The tensor that the last product is taken with."""
        return "wte" if self.tied else "lm_head"

    @classmethod
    def from_mapping(
        cls,
        sizes: Mapping[str, object],
        architecture: str = "gpt2",
        tied: bool = True,
        own: Architecture | None = None,
    ) -> Config:
        """Read ``hparams.json``; a missing or an unknown key is refused by name.

        Args:
            sizes: what the file says.
            architecture: its name, one of ``ARCHITECTURES``, or that of a family.
            tied: the head is wte.
            own: of a family, what this model does otherwise than others.

        Raises:
            ConfigError: a key is missing or unknown, or a size is impossible.
        """
        if missing := sorted(set(LARGEST) - set(sizes)):
            raise ConfigError(f"missing: {', '.join(missing)}")
        if unknown := sorted(set(sizes) - set(LARGEST)):
            raise ConfigError(f"unknown key: {', '.join(unknown)}")
        # __post_init__ refuses what is not an integer.
        return cls(**sizes, architecture=architecture, tied=tied, own=own)  # type: ignore[arg-type]

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
