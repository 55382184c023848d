"""The laws of generation: correct ports of several styles, and each fault by its name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from models import CONFIG, checkpoint
from plain_ports import faulty, plain
from subjects import hold, port, subject

from gpt_verify.diagnosis.left_over import goes_with
from gpt_verify.faults.inject import wrap
from gpt_verify.findings import Finding, Status
from gpt_verify.laws.catalogue import CATALOGUE
from gpt_verify.laws.generation import check
from gpt_verify.laws.table import CHECKS
from gpt_verify.port import GENERATE, Prompt
from gpt_verify.ports.torch.module import TorchModule
from gpt_verify.reference import Config

PARTS = [part.id for part in CHECKS if part.id.startswith("generation.")]
FAULTS = [name for name, fault in CATALOGUE.items() if fault.family == "generation"]


def one(law: str, *args: Any) -> Finding:
    (finding,) = hold(law, *args)
    return finding


@pytest.mark.parametrize(
    ("attention", "dtype"), [("eager", "float32"), ("sdpa", "bfloat16"), ("sdpa", "float16")]
)
def test_transformers_generates_what_it_computes(attention: str, dtype: Any) -> None:
    made = port(attention=attention, dtype=dtype)
    settings = made.module.generation_config  # type: ignore[attr-defined]
    for law in PARTS:
        finding = one(law, made)
        assert finding.status is Status.PASSED, finding.message
    assert made.module.generation_config is settings  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_refuted_and_named(name: str) -> None:
    finding = one(str(CATALOGUE[name].law), faulty(name))
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == name, finding.message


def by_steps(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    """The logits of the next token, with a cache of those before it."""
    if mask is not None:
        return right(ids, mask, made)
    cache = None
    for part in ids.split([ids.shape[1] - made] + [1] * made, dim=1):
        found = self(part, past_key_values=cache, use_cache=True)
        cache = found["past_key_values"]
    return found["logits"][:, -1]


def test_what_a_cache_gets_wrong_has_no_name_of_generation() -> None:
    """Most models soon repeat a token; then a wrong cache generates what another fault would."""
    wrong = set()
    for name in (name for name, fault in CATALOGUE.items() if fault.law == "cache"):
        made = faulty(name)
        wrap(made.module, "next_logits", by_steps)
        finding = one("generation.greedy", made)
        if finding.status is Status.FAILED:
            wrong.add(name)
            assert finding.fault is None, (name, finding.message)
            assert finding.message.endswith("its steps with a cache say the same: see cache")
            assert goes_with(name, finding)
            assert not goes_with("generation-last-token-only", finding)
    assert "cache-positions-restart" in wrong


def by_rank(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    logits = right(ids, mask, made)
    second = logits.topk(2).indices[:, 1:]
    return logits.scatter(-1, second, float(logits.abs().max()) + 1)


def without_the_prompt(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    prompt = ids[:, : ids.shape[1] - made]
    return right(ids, mask, made).scatter(-1, prompt, -1e9)


def without_repetition(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    return right(ids, mask, made).scatter(-1, ids, -1e9)


def drawn(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    logits = right(ids, mask, made)
    return logits - (-torch.rand_like(logits).log()).log()


def of_the_first_row(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    return right(ids, mask, made)[:1].expand(len(ids), -1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (by_rank, "each is number 2 of the likeliest"),
        (without_the_prompt, "a token that the prompt has is passed over"),
        (without_repetition, "was there before is passed over|the prompt has is passed over"),
        (drawn, "drawn at random"),
        (of_the_first_row, "every row goes on with the tokens of the first"),
    ],
)
def test_a_rule_by_which_tokens_are_chosen_is_read_off(rule: Any, words: str) -> None:
    made = plain()
    wrap(made.module, "next_logits", rule)
    finding = one("generation.greedy", made)
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == "generation-choice"
    assert re.search(words, finding.message), finding.message


def of_a_part_of_the_vocabulary(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    """The number of the likeliest within its half."""
    logits = right(ids, mask, made)
    half = (logits.shape[-1] + 1) // 2
    return torch.nn.functional.one_hot(logits.argmax(-1) % half, logits.shape[-1]).float()


def at_the_count(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    """The first token is read where it would be if padding stood on the right."""
    if mask is None or made:
        return right(ids, mask, made)
    logits = self(ids, attention_mask=mask)["logits"]
    return logits[torch.arange(len(ids)), mask.sum(1) - 1]


def averaged(attn: Any, right: Any, scores: Any) -> Any:
    """With a cache, the mean of the softmaxes of tiles of 4."""
    if scores.shape[-2] > 1 or scores.shape[-1] <= 4:
        return right(scores)
    each = [tile.softmax(-1) for tile in scores.split(4, -1)]
    return torch.cat(each, -1) / len(each)


@pytest.mark.parametrize(
    ("law", "rule", "words"),
    [
        (
            "generation.greedy",
            of_a_part_of_the_vocabulary,
            f"is counted from {(CONFIG.n_vocab + 1) // 2} on in that part of the vocabulary",
        ),
        (
            "generation.padded",
            at_the_count,
            "the first token of a padded prompt is read at the number of its real tokens",
        ),
    ],
)
def test_a_place_at_which_tokens_are_read_or_counted(law: str, rule: Any, words: str) -> None:
    made = plain()
    wrap(made.module, "next_logits", rule)
    finding = one(law, made)
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault == "generation-choice"
    assert words in finding.message


def by_padded_steps(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    """The same of padded rows: the first call has the prompt, each other one a token."""
    at, cache = ids.shape[1] - made, None
    for end in range(at, ids.shape[1] + 1):
        found = self(
            ids[:, 0 if cache is None else end - 1 : end],
            attention_mask=None if mask is None else mask[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = found["past_key_values"]
    return found["logits"][:, -1]


def test_what_a_cache_gets_wrong_of_padded_rows_has_no_name_of_generation() -> None:
    made = plain()
    for block in made.module.h:
        wrap(block.attn, "softmax", averaged)
    wrap(made.module, "next_logits", by_padded_steps)
    finding = one("generation.padded", made)
    assert finding.status is Status.FAILED, finding.message
    assert finding.fault is None
    assert finding.message.endswith("its steps with a cache say the same: see cache")


def test_wrong_logits_give_no_name_to_what_is_generated() -> None:
    made = plain()
    wrap(made.module, "next_logits", by_rank)
    judged = subject(made)
    judged.logits_right = False
    (finding,) = next(part for part in CHECKS if part.id == "generation.greedy").hold(judged)
    assert finding.status is Status.FAILED
    assert finding.fault is None
    assert "its plain logits are wrong" in finding.message


def generated_are_padding(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
    """The mask is lengthened by zeros, as where it is made anew of ids that are not padding."""
    if mask is None or not made:
        return right(ids, mask, made)
    mask = torch.cat([mask[:, :-made], torch.zeros_like(mask[:, -made:])], dim=1)
    return right(ids, mask, made)


def test_the_prompt_that_is_padded_is_one_after_which_tokens_differ() -> None:
    def different(judged: Any, prompt: Prompt) -> int:
        got = judged.offers[GENERATE](prompt)
        return sum(len(set(row.tolist())) for row in got)

    more = []
    for scale in (0.02, 0.1, 0.3, 0.5, 1.0):
        source = checkpoint(scale=scale)
        judged = subject(plain(source=source), source)
        first, telling = check._prompt(judged, 3), check._telling_prompt(judged)
        more.append(different(judged, telling) - different(judged, first))
    assert min(more) >= 0 and max(more) > 0, more


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_what_generated_tokens_are_read_as_shows(scale: float) -> None:
    """Most models soon repeat a token, after which nothing tells: other prompts are tried."""
    source = checkpoint(scale=scale)
    made = plain(source=source)
    wrap(made.module, "next_logits", generated_are_padding)
    finding = one("generation.padded", made, source)
    assert finding.status is Status.FAILED, finding.message


def test_a_token_that_is_never_taken_is_read_off() -> None:
    free = plain()
    taken = free.offers()[GENERATE](Prompt(np.array([[5, 9, 17], [3, 1, 8]]), 1))
    token = int(taken[0, 0])

    def suppressed(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
        logits = right(ids, mask, made)
        logits[:, token] = -1e9
        return logits

    made = plain()
    wrap(made.module, "next_logits", suppressed)
    finding = one("generation.greedy", made)
    assert finding.status is Status.FAILED, finding.message
    assert f"token {token} is passed over" in finding.message, finding.message


def test_prompts_go_on_until_one_of_their_tokens_is_the_likeliest() -> None:
    finding = one("generation.greedy", plain())
    assert finding.status is Status.PASSED, finding.message
    assert re.search(r"the prompt has [1-9]\d* of them already", finding.message), finding.message


def test_positions_that_count_the_padding_are_a_convention() -> None:
    finding = one("generation.padded", faulty("padding-positions-counted"))
    assert finding.status is Status.PASSED, finding.message
    assert "see positions.padding" in finding.message


class NanoGPT(torch.nn.Module):
    """Its ``generate``: sampled among the best, of a window of the last tokens."""

    def __init__(self, inner: Any, prompt: bool = True) -> None:
        super().__init__()
        self.inner, self.prompt = inner, prompt

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(ids)["logits"]
        return logits

    def generate(
        self, idx: Any, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Any:
        length = idx.shape[1]
        for _ in range(max_new_tokens):
            logits = self(idx[:, -CONFIG.n_ctx :])[:, -1] / temperature
            if top_k is not None:
                best, _ = torch.topk(logits, top_k)
                logits[logits < best[:, [-1]]] = -torch.inf
            token = torch.multinomial(torch.softmax(logits, dim=-1), 1)
            idx = torch.cat([idx, token], dim=1)
        return idx if self.prompt else idx[:, length:]


def nano(**how: Any) -> TorchModule:
    return TorchModule(NanoGPT(plain().module, **how), checkpoint(), "nano")


@pytest.mark.parametrize("prompt", [True, False])
def test_nanogpt_is_made_greedy(prompt: bool) -> None:
    made = nano(prompt=prompt)
    drawn = torch.get_rng_state()
    assert one("generation.greedy", made).status is Status.PASSED
    limit = one("generation.limit", made)
    assert limit.status is Status.PASSED, limit.message
    assert "goes on from the last tokens" in limit.message
    assert torch.equal(drawn, torch.get_rng_state())
    for law in ("generation.padded", "generation.end"):
        assert one(law, made).status is Status.NOT_EXAMINED


def of_another_number(self: Any, right: Any, ids: Any, *given: Any, **more: Any) -> Any:
    made = right(ids, *given, **more)
    return torch.cat([made, made[:, -1:]], dim=1)


def beyond_the_table(self: Any, right: Any, ids: Any, *given: Any, **more: Any) -> Any:
    made = right(ids, *given, **more)
    made[0, ids.shape[1] + 1] = 101
    return made


@pytest.mark.parametrize(
    ("generate", "says"),
    [
        (of_another_number, "tokens are generated, should be [2, "),
        (beyond_the_table, "token 101"),
    ],
)
def test_tokens_that_no_prompt_has(generate: Any, says: str) -> None:
    finding = one("generation.greedy", plain(lambda model: wrap(model, "generate", generate)))
    assert finding.status is Status.FAILED
    assert says in finding.message, finding.message


def test_what_ends_a_row_may_be_left_out() -> None:
    def generate(self: Any, right: Any, ids: Any, *given: Any, **more: Any) -> Any:
        made, end = right(ids, *given, **more), more.get("eos_token_id")
        ends = len(ids) == 1 and end is not None and int(made[0, -1]) == end
        return made[:, :-1] if ends else made

    finding = one("generation.end", plain(lambda model: wrap(model, "generate", generate)))
    assert finding.status is Status.PASSED, finding.message


def test_sampling_without_a_way_around_it_is_not_offered() -> None:
    class Samples(NanoGPT):
        def generate(self, idx: Any, max_new_tokens: int, temperature: float = 1.0) -> Any:  # type: ignore[override]
            return super().generate(idx, max_new_tokens, temperature)

    made = TorchModule(Samples(plain().module), checkpoint(), "samples")
    assert GENERATE not in made.offers()


@pytest.mark.parametrize(("n_vocab", "n_ctx"), [(1, 2), (2, 3), (5, 1)])
def test_small_models(n_vocab: int, n_ctx: int) -> None:
    source = checkpoint(Config(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=4, n_head=2, n_layer=1))
    made = port(source=source)
    for law in PARTS:
        finding = one(law, made, source)
        assert finding.status is not Status.FAILED, finding.message


def test_a_tie_may_go_either_way() -> None:
    """Two rows of the table that are the same: either token is the likeliest."""
    source = checkpoint()
    table = np.array(source.tensors["wte"])
    table[:] = table[:1]
    source.tensors["wte"][...] = table

    def last(self: Any, right: Any, *given: Any) -> Any:
        return right(*given).flip(-1)  # the last of the likeliest, where argmax takes the first

    made = plain(lambda model: wrap(model, "next_logits", last), source=source)
    assert one("generation.greedy", made, source).status is Status.PASSED


def beyond(at: Any, tokens: Any) -> Any:
    """Beyond the context it goes on from ``tokens(ids, n_ctx)``, whose positions ``at`` makes."""

    def next_logits(self: Any, right: Any, ids: Any, mask: Any, made: int) -> Any:
        n_ctx = self.config.n_ctx
        if ids.shape[1] <= n_ctx:
            return right(ids, mask, made)
        kept = tokens(ids, n_ctx)
        x = self.embed(kept, at(torch.arange(kept.shape[1]), n_ctx))
        for block in self.h:
            x, _ = block(x, None, None)
        return self.head(self.ln_f(x))[:, -1]

    return plain(lambda model: wrap(model, "next_logits", next_logits))


WAYS: dict[str, tuple[Any, Any]] = {
    "rolls": (lambda at, n: at, lambda ids, n: ids[:, -n:]),
    "clipped": (lambda at, n: at.clamp(max=n - 1), lambda ids, n: ids),
    "wrapped": (lambda at, n: at % n, lambda ids, n: ids),
    "one too far": (lambda at, n: (at + 1).clamp(max=n - 1), lambda ids, n: ids[:, -n:]),
    "first tokens alone": (lambda at, n: at, lambda ids, n: ids[:, :n]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_window_that_does_not_roll_is_refuted(way: str) -> None:
    """Each of the wrong ones makes the right tokens of most prompts, as every model does that
    repeats one token whatever was before it."""
    finding = one("generation.limit", beyond(*WAYS[way]))
    expected = Status.PASSED if way == "rolls" else Status.FAILED
    assert finding.status is expected, finding.message
    if way == "rolls":
        assert "of which one token less would change" in finding.message


@pytest.mark.parametrize(
    ("new", "status"), [(0, Status.NOT_EXAMINED), (1, Status.PASSED), (2, Status.PASSED)]
)
def test_a_port_that_stops_at_the_end_of_its_context(new: int, status: Status) -> None:
    def generate(self: Any, right: Any, ids: Any, max_new_tokens: int, **more: Any) -> Any:
        return right(ids, min(max_new_tokens, new), **more)

    made = plain(lambda model: wrap(model, "generate", generate))
    assert one("generation.limit", made).status is status
