"""Models and code on which claims about the two tables come out the other way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from faulted_cases import HERE, altered, asked, code, faulted, torch_model, weights, with_tensors
from models import CONFIG, checkpoint

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.synthetic import synthesize
from gpt_verify.claims.case import Case
from gpt_verify.claims.mingpt import untied
from gpt_verify.reference import ops
from gpt_verify.reference.config import Config


@faulted("tie-transpose")
def head_of_other_rows() -> Case:
    """The last product reads the table's rows in another order."""
    return altered({"logits": lambda c: c.x @ c.w("wte")[::-1].T})


@faulted("tie-new-matrix", "tie-set-equal", "tie-param-count")
def head_of_its_own() -> Case:
    """The head is a parameter of its own, drawn at random."""
    import torch

    def alter(model: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.empty_like(model.lm_head.weight).normal_(generator=generator)
        model.lm_head.weight = torch.nn.Parameter(drawn)

    return torch_model(alter)


@faulted("tie-set-equal")
def head_is_a_copy() -> Case:
    """The head has equal values in memory of its own."""
    import torch

    def alter(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())

    return torch_model(alter)


@faulted("tie-shapes")
def head_stored_transposed() -> Case:
    """The head is a parameter of its own of the shape embed × vocab."""
    import torch

    class Head(torch.nn.Module):
        def __init__(self, weight: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight.detach().T.clone())

        def forward(self, x: Any) -> Any:
            return x @ self.weight

    def alter(model: Any) -> None:
        model.lm_head = Head(model.lm_head.weight)

    return torch_model(alter)


@faulted("tie-graph")
def stored_graph_with_two_tables() -> Case:
    """The graph beside the weights reads another variable in its last product."""
    from gpt_verify.ports.openai_tf import openai_tf

    directory = Path(tempfile.mkdtemp())
    synthesize(directory, CONFIG, 0)
    script = HERE.parent / "laws" / "untied_meta.py"
    sizes = [str(CONFIG.n_vocab), str(CONFIG.n_embd)]
    subprocess.run([sys.executable, str(script), str(directory), *sizes], check=True)
    source = open_checkpoint(directory)
    port = openai_tf(source)
    case = asked(port, source)
    case.callback(port.close)
    case.callback(lambda: shutil.rmtree(directory))
    return case


@faulted("tie-gpt1")
def gpt1_untied() -> Case:
    """A transformers whose GPT-1 is not tied."""
    return code("before_gpt1_untied.py")


@faulted("tie-gpt1")
def gpt1_norms_first() -> Case:
    """A transformers whose GPT-1 is tied, but another function than GPT's."""
    return code("before_gpt1_norms_first.py")


@faulted("tie-hf-swappable")
def always_tied() -> Case:
    """A transformers that ties the head whatever it is told."""
    return code("before_always_tied.py")


@faulted("tie-mingpt")
def mingpt_tied() -> Case:
    """A model of that design whose head is its embedding."""

    def tied(source: Any) -> Any:
        model = untied(source)
        model.head_weight = model.wte
        return model

    source = checkpoint()
    return Case(source, code=[], untied=tied)


@faulted("tie-formula", "tie-dot-product")
def head_with_a_bias() -> Case:
    """The head adds a number for each token."""
    return altered({"logits": lambda c: ops.unembed(c.x, c.own(0)) + np.arange(c.config.n_vocab)})


@faulted("tie-same-ids")
def more_logits_than_rows() -> Case:
    """The head has logits for tokens that have no row."""

    def padded(c: Any) -> Any:
        logits = ops.unembed(c.x, c.own(0))
        return np.concatenate([logits, logits.max() + np.ones((len(logits), 3))], axis=-1)

    return altered({"logits": padded})


@faulted("tie-row-select", "embed-scaled")
def embeddings_scaled() -> Case:
    """Token rows are multiplied by √D."""

    def scaled(c: Any) -> Any:
        rows = c.w("wte")[c.tokens_T] * np.sqrt(c.config.n_embd)
        return rows + c.w("wpe")[: len(c.tokens_T)]

    return altered({"embed": scaled})


@faulted("tie-magnitude")
def no_final_norm() -> Case:
    """The last state is read as it is."""
    return altered({"ln_f": lambda c: c.x})


@faulted("wwt-singular")
def more_channels_than_tokens() -> Case:
    """A table of full rank: fewer tokens than channels."""
    return weights(checkpoint(Config(n_vocab=20, n_ctx=19, n_embd=24, n_head=4, n_layer=2)))


@faulted("wte-linear")
def embedding_with_a_bias() -> Case:
    """The lookup adds a vector to every row."""

    def biased(c: Any) -> Any:
        return ops.embed(c.tokens_T, c.lookup("wte"), c.lookup("wpe")) + 0.01

    return altered({"embed": biased})


@faulted("wpe-added")
def no_positions() -> Case:
    """Tokens alone."""
    return altered({"embed": lambda c: c.w("wte")[c.tokens_T]})


@faulted("wpe-sinusoidal")
def sines_and_cosines() -> Case:
    """wpe holds the sinusoids of the Transformer of 2017."""
    at, channel = np.indices((CONFIG.n_ctx, CONFIG.n_embd))
    angle = at / 10000.0 ** (2 * (channel // 2) / CONFIG.n_embd)
    table = np.where(channel % 2, np.cos(angle), np.sin(angle))
    return with_tensors(wpe=table.astype(np.float32))
