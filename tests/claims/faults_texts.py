"""Cases on which claims about tokenizers, lenses and weights come out the other way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from faulted_cases import altered, code, faulted, weights, with_tensors
from models import CONFIG

from gpt_verify.checkpoint import Checkpoint, default_checkpoint, open_checkpoint
from gpt_verify.claims.case import Case
from gpt_verify.reference.bpe import BPE


def default() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


def tokenized(make: Callable[[BPE], Any]) -> Case:
    """The default checkpoint with another tokenizer."""
    case = Case(default(), models=[], code=[])
    case.bpe = make(case.bpe)
    return case


# Tokenizers


@faulted("vocab-50257")
def padding_token_added() -> Case:
    """A second special token."""
    return tokenized(lambda bpe: BPE({**bpe.encoder, "[PAD]": len(bpe.encoder)}, bpe.merges))


class _Lossy(BPE):
    """Alters the text before it is encoded."""

    change: Callable[[str], str]

    def encode(self, text: str) -> list[int]:
        return super().encode(self.change(text))


def _changing(change: Callable[[str], str]) -> Case:
    def make(bpe: BPE) -> BPE:
        lossy = _Lossy(bpe.encoder, bpe.merges)
        lossy.change = change
        return lossy

    return tokenized(make)


@faulted("unknown-token")
def latin_only() -> Case:
    """What is not Latin-1 becomes a question mark."""
    return _changing(lambda text: text.encode("latin-1", "replace").decode("latin-1"))


@faulted("leading-space")
def spaces_stripped() -> Case:
    """Spaces at the ends are thrown away."""
    return _changing(str.strip)


@faulted("bos-added")
def begins_with_end_of_text() -> Case:
    """A transformers whose tokenizers begin with the end-of-text token."""
    return code("before_bos.py")


# The lens


@faulted("lens-hf-last", "hf-api-drift")
def states_before_the_norm() -> Case:
    """A transformers whose hidden_states end before ln_f, so that its lens is not ours either."""
    return code("before_hidden_states.py")


@faulted("hf-api-drift")
def old_code_works() -> Case:
    """A transformers on which everything that code of 2020 does works."""
    return code("before_old_code_works.py")


@faulted("hidden-states-count")
def first_state_left_out() -> Case:
    """A transformers whose hidden_states begin after the first block."""
    return code("before_fewer_states.py")


@faulted("kl-not-metric")
def blocks_write_nothing() -> Case:
    """All states are the same, and so are their distributions."""
    silent = {"h.*.attn.out": np.zeros_like, "h.*.mlp.out": np.zeros_like}
    return altered({site: _nothing for site in silent})


def _nothing(c: Any) -> Any:
    return np.zeros((len(c.tokens_T), c.config.n_embd))


# What running cannot decide


@faulted("weight-decay-spread")
def optimizer_in_the_checkpoint() -> Case:
    """The checkpoint holds an optimiser's memory too."""
    return with_tensors(wte__Adam=np.zeros((CONFIG.n_vocab, CONFIG.n_embd), np.float32))


# Weights: the default checkpoint, altered so that what held does not, or the other way round


def trained(change: Callable[[str, Any], Any]) -> Case:
    source = default()
    return weights(replace(source, tensors={n: change(n, v) for n, v in source.tensors.items()}))


def _silent_but(layers: set[int]) -> Case:
    """Only these layers write anything."""

    def change(name: str, value: Any) -> Any:
        speaks = any(name.startswith(f"h{layer}/") for layer in layers)
        return value if "/c_proj/" not in name or speaks else np.zeros_like(value)

    return trained(change)


@faulted("embed-unigram", "lens-converges")
def only_the_last_block_writes() -> Case:
    """Every block but the last writes nothing, so that nothing happens before it."""
    return _silent_but({default().config.n_layer - 1})


@faulted("lens-input-self")
def embeddings_without_length() -> Case:
    """Token rows so short that positions drown them."""
    return trained(lambda name, value: value * np.float32(1e-3) if name == "wte" else value)


@faulted("lens-early-unlike", "lens-kl-input")
def only_the_first_block_writes() -> Case:
    """All that happens, happens in the first block, which writes ten times as much."""

    def change(name: str, value: Any) -> Any:
        if "/c_proj/" not in name:
            return value
        return value * np.float32(20) if name.startswith("h0/") else np.zeros_like(value)

    return trained(change)


@faulted("lens-rare-kept")
def nothing_is_written() -> Case:
    """No block writes anything, so that every token keeps its rank."""
    return _silent_but(set())


@faulted("lens-copy-late", "lens-repeat-upper")
def silent_blocks_first() -> Case:
    """Eight blocks that write nothing come before the others."""
    source, more = default(), 8
    tensors: dict[str, Any] = {}
    for name, value in source.tensors.items():
        scope, _, rest = name.partition("/")
        if scope[1:].isdigit():
            tensors[f"h{int(scope[1:]) + more}/{rest}"] = value
            if scope == "h0":
                silent = np.zeros_like(value) if "/c_proj/" in name else value
                tensors |= {f"h{layer}/{rest}": silent for layer in range(more)}
        else:
            tensors[name] = value
    config = replace(source.config, n_layer=source.config.n_layer + more)
    return weights(replace(source, config=config, tensors=tensors))
