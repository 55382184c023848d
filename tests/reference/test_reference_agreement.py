"""The oracle beside other people's GPT-2, all in float64: transformers, and OpenAI's graph.

In float64 nothing hides under rounding: what agrees to 1e-12 at every site is the same function.
TensorFlow runs in a process of its own, behind its port; torch and transformers run here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracle import RELATIVE, assert_agrees, sites_of, tokens_of, weights_of

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.synthetic import synthesize
from gpt_verify.port import Port
from gpt_verify.ports.openai_tf import openai_tf
from gpt_verify.reference import Config, logits
from gpt_verify.reference.lens import kl_nats, lens, rank
from gpt_verify.reference.loss import loss_nats
from gpt_verify.sites import sites

#: V, P, D, H, L. Different in everything; one head, one layer, one channel a head among them.
MODELS = {
    "3 heads": (Config(11, 7, 12, 3, 2), 0),
    "1 head, 1 layer": (Config(13, 9, 6, 1, 1), 1),
    "1 channel a head": (Config(7, 5, 8, 8, 3), 2),
    "deeper": (Config(53, 17, 24, 4, 5), 3),
}

Shown = dict[str, NDArray[Any]]


def lengths(config: Config) -> list[int]:
    return sorted({1, 2, config.n_ctx // 2, config.n_ctx})


# transformers


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.replace(" ", "-"))
def model(request: pytest.FixtureRequest) -> tuple[Config, dict[str, NDArray[np.float64]]]:
    config, seed = MODELS[request.param]
    return config, weights_of(config, seed)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def gpt2(request: pytest.FixtureRequest, model: Any) -> Any:
    """``GPT2LMHeadModel`` in float64, its parameters filled one by one by name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, weights = model
    sizes = GPT2Config(
        vocab_size=config.n_vocab,
        n_positions=config.n_ctx,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_layer=config.n_layer,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=request.param,
    )
    module = GPT2LMHeadModel(sizes).double().eval()
    filled = dict(module.named_parameters())
    for name, value in weights.items():
        own = filled.pop(f"transformer.{hugging_face_name(name)}")
        assert tuple(own.shape) == value.shape
        own.data.copy_(torch.from_numpy(value))
    assert not filled, "lm_head is wte and no parameter of its own"
    return module


def hugging_face_name(name: str) -> str:
    """``h0/attn/c_attn/w`` → ``h.0.attn.c_attn.weight``."""
    if name in ("wte", "wpe"):
        return f"{name}.weight"
    *scope, leaf = re.sub(r"^h(\d+)/", r"h/\1/", name).split("/")
    return ".".join([*scope, "bias" if leaf == "b" else "weight"])


def shown_by(gpt2: Any, tokens: NDArray[np.integer]) -> tuple[Shown, Any]:
    """Every site that the modules show by what goes in and comes out, and the model's output."""
    shown: Shown = {}
    body = gpt2.transformer
    taps: list[tuple[Any, str | None, str | None]] = [(body.drop, None, "embed")]
    for i, block in enumerate(body.h):
        at = f"h.{i}"
        taps += [
            (block.ln_1, None, f"{at}.ln_1"),
            (block.attn.c_attn, None, f"{at}.attn.qkv"),
            (block.attn.c_proj, f"{at}.attn.mix", f"{at}.attn.out"),
            (block.ln_2, f"{at}.resid_mid", f"{at}.ln_2"),
            (block.mlp.c_fc, None, f"{at}.mlp.pre"),
            (block.mlp.act, None, f"{at}.mlp.act"),
            (block.mlp.c_proj, None, f"{at}.mlp.out"),
        ]
    taps.append((body.ln_f, f"h.{len(body.h) - 1}.resid_post", "ln_f"))

    def tap(module: Any, before: str | None, after: str | None) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            for site, value in ((before, inputs[0]), (after, output)):
                if site is not None:
                    assert value.dtype == torch.float64
                    shown[site] = value.detach()[0].numpy()

        return module.register_forward_hook(hook)

    handles = [tap(*each) for each in taps]
    try:
        ids = torch.from_numpy(tokens)[None]
        with torch.no_grad():
            output = gpt2(
                ids,
                labels=ids if len(tokens) > 1 else None,
                output_hidden_states=True,
                output_attentions=gpt2.config._attn_implementation == "eager",
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    for i, value in enumerate(output.hidden_states[1:-1]):
        shown[f"h.{i}.resid_post"] = value[0].numpy()
    if output.attentions is not None:
        for i, value in enumerate(output.attentions):
            shown[f"h.{i}.attn.pattern"] = value[0].numpy()
    shown["logits"] = output.logits[0].numpy()
    return shown, output


def test_transformers_agrees_at_every_site_that_it_shows(model, gpt2):
    config, weights = model
    eager = gpt2.config._attn_implementation == "eager"
    hidden = ("attn.scores",) if eager else ("attn.scores", "attn.pattern")
    for length in lengths(config):
        tokens = tokens_of(config, length)
        expected = sites_of(weights, config, tokens)
        shown, output = shown_by(gpt2, tokens)
        assert set(shown) == {site for site in sites(config) if not site.endswith(hidden)}
        for site, value in shown.items():
            assert_agrees(value, expected[site], f"{site}, {length} tokens")
        states = output.hidden_states
        assert len(states) == config.n_layer + 1
        assert_agrees(states[0][0], expected["embed"], "first hidden state")
        assert_agrees(states[-1][0], expected["ln_f"], "last hidden state")


def test_loss_agrees_with_transformers_and_torch(model, gpt2):
    config, weights = model
    for length in lengths(config)[1:]:
        tokens = tokens_of(config, length)
        found = loss_nats(logits(weights, config, tokens), tokens)
        _shown, output = shown_by(gpt2, tokens)
        scores, labels = output.logits[0], torch.from_numpy(tokens)
        exact = torch.nn.functional.cross_entropy(scores[:-1], labels[1:])
        assert exact.dtype == torch.float64
        assert_agrees(found, exact, f"{length} tokens")
        # transformers casts its logits to float32 first, which moves each by a relative u. So does
        # every operation after it, of which the sums over V and over T have V and T.
        u, largest = 2.0**-24, float(scores.abs().max())
        most = 2 * largest + math.log(config.n_vocab)  # that one prediction can cost
        budget = u * (2 * largest + config.n_vocab + (length + 8) * most)
        assert abs(found - float(output.loss)) <= budget < 0.1


def test_the_lens_agrees_with_torch(model, gpt2):
    config, weights = model
    tokens = tokens_of(config, config.n_ctx)
    shown, _output = shown_by(gpt2, tokens)
    by_site = dict(lens(weights, config, tokens))
    final = by_site[f"h.{config.n_layer - 1}.resid_post"]
    with torch.no_grad():
        last = torch.log_softmax(torch.from_numpy(shown["logits"]), dim=-1)
        for site, value in by_site.items():
            scores = gpt2.lm_head(gpt2.transformer.ln_f(torch.from_numpy(shown[site])))
            log_q = torch.log_softmax(scores, dim=-1)
            assert_agrees(value, log_q, site)
            kl = torch.nn.functional.kl_div(log_q, last, reduction="none", log_target=True).sum(-1)
            # A small divergence is a sum of larger terms that cancel: relative to those.
            terms = float((last.exp() * (last - log_q).abs()).sum(-1).max())
            assert np.abs(kl_nats(final, value) - kl.numpy()).max() <= RELATIVE * max(terms, 1.0)
            order = scores.argsort(dim=-1, descending=True)
            places = (order == torch.from_numpy(tokens)[:, None]).int().argmax(dim=-1)
            assert rank(value, tokens).tolist() == places.tolist(), site


# TensorFlow


@pytest.fixture(scope="module", params=["openai", "huggingface"])
def graph(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Config, int, Port]]:
    """OpenAI's graph, restored by the Saver or filled tensor by tensor; one process for each."""
    name = {"openai": "deeper", "huggingface": "1 head, 1 layer"}[request.param]
    config, seed = MODELS[name]
    directory = tmp_path_factory.mktemp("agreement") / "checkpoint"
    synthesize(directory, config, seed, format=request.param)
    port = openai_tf(open_checkpoint(directory))
    try:
        yield config, seed, port
    finally:
        port.close()


def test_openais_graph_agrees_at_every_site(graph):
    config, seed, port = graph
    weights = weights_of(config, seed)
    with port.float64() as float64_copy:
        for length in lengths(config):
            batch = np.stack([tokens_of(config, length), tokens_of(config, length, 1)])
            shown: Shown = {}

            def visit(site: str, value: NDArray[Any], shown: Shown = shown) -> None:
                shown[site] = value.copy()

            assert_agrees(float64_copy.activations(batch, visit), shown["logits"])
            assert list(shown) == list(sites(config))
            for row, tokens in enumerate(batch):
                for site, expected in sites_of(weights, config, tokens).items():
                    assert shown[site].dtype == np.float64
                    where = f"{site}, {length} tokens, row {row}"
                    assert_agrees(shown[site][row], expected, where)


def test_loss_agrees_with_openais_graph(graph):
    """The published code has no loss; its logits do, by the definition of cross entropy."""
    config, seed, port = graph
    tokens = tokens_of(config, config.n_ctx)
    with port.float64() as float64_copy:
        scores = float64_copy.logits(tokens[None])[0]
    found = loss_nats(logits(weights_of(config, seed), config, tokens), tokens)
    costs = [
        math.log(math.fsum(map(math.exp, row.tolist()))) - row[following]
        for row, following in zip(scores[:-1], tokens[1:], strict=True)
    ]
    assert_agrees(found, math.fsum(costs) / len(costs))
