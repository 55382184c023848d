"""Run as a script: examine the GPT-2 of the transformers that this interpreter has.

    python transformers_probe.py DIRECTORY GPT1 [BEFORE.py]

DIRECTORY holds a GPT-2 in Hugging Face's format, and GPT1 a GPT. The last line that is printed is
one JSON object. The script stands alone: the interpreter may be another one, in which nothing of
gpt-verify is installed. It uses only what both versions 4 and 5 have.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

#: Read by the model: ids that every vocabulary of some size has.
TOKENS = [[5, 101, 7, 77, 5, 101, 9, 1, 64]]


def load(directory: str, **options: Any) -> Any:
    model = transformers.GPT2LMHeadModel.from_pretrained(
        directory, attn_implementation="eager", **options
    )
    return model.double().eval()


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.data_ptr() == b.data_ptr())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, as a fraction of the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def hidden_states(model: Any) -> dict[str, Any]:
    """What hidden_states[-1] is: with and without a further layer norm."""
    ids = torch.tensor(TOKENS)
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        states, logits = output.hidden_states, output.logits
        once, twice = model.lm_head(states[-1]), model.lm_head(model.transformer.ln_f(states[-1]))
        before = model.transformer.ln_f(states[-2])
        lens = [model.lm_head(s if s is states[-1] else model.transformer.ln_f(s)) for s in states]
    right, wrong = torch.log_softmax(logits, -1), torch.log_softmax(twice, -1)
    kl = (right.exp() * (right - wrong)).sum(-1)
    return {
        "states": len(states),
        "layers": model.config.n_layer,
        "distance_once": distance(once, logits),
        "distance_twice": distance(twice, logits),
        "distance_earlier": distance(before, states[-1]),
        "kl_twice_nats": float(kl.mean()),
        "top1_twice_same": float((twice.argmax(-1) == logits.argmax(-1)).double().mean()),
        "lens_top1": [state[0].argmax(-1).tolist() for state in lens],
        "lens_probability": [torch.softmax(s[0], -1).max(-1).values.tolist() for s in lens],
    }


def tying(directory: str, model: Any) -> dict[str, Any]:
    """Whether the head can be had tied and untied."""
    untied = load(directory, tie_word_embeddings=False)
    wte = model.transformer.wte.weight
    with torch.no_grad():
        kept = untied.lm_head.weight.clone()
        untied.transformer.wte.weight.add_(1.0)
        follows = not torch.equal(untied.lm_head.weight, kept)
    return {
        "tied_shares": same_memory(wte, model.lm_head.weight),
        "untied_shares": same_memory(untied.transformer.wte.weight, untied.lm_head.weight),
        "untied_follows": follows,
        "body_has_head": any("lm_head" in name for name, _ in model.transformer.named_modules()),
        "wte_shape": list(wte.shape),
        "head_shape": list(model.lm_head.weight.shape),
    }


def gpt1(directory: str) -> dict[str, Any]:
    """The first GPT's model: what it computes, and which memory its two ends read."""
    config = transformers.OpenAIGPTConfig.from_pretrained(directory)
    model = transformers.OpenAIGPTLMHeadModel(config).double().eval()
    # Not from_pretrained, which ties what is not tied.
    model.load_state_dict(load_file(f"{directory}/model.safetensors"), strict=False)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    table = model.transformer.tokens_embed.weight
    with torch.no_grad():
        state = model.transformer(ids)[0]
        logits = model(ids).logits
        product = distance(state @ table.T, logits)
        # A write to the table shows in the logits of a token that is not read.
        table[30] += 1.0
        moved = not torch.equal(model(ids).logits[..., 30], logits[..., 30])
    return {
        "tokens": ids[0].tolist(),
        "logits": logits[0].tolist(),
        "shares": same_memory(table, model.lm_head.weight),
        "distance_product": product,
        "write_shows": moved,
    }


def mask(model: Any) -> dict[str, Any]:
    """What is added to the scores, where the attention is handed a mask; and the pattern."""
    seen: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        found = kwargs.get("attention_mask")
        found = args[2] if found is None and len(args) > 2 else found
        if isinstance(found, torch.Tensor):
            seen.append(found.detach())

    handle = model.transformer.h[0].attn.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        pattern = model(torch.tensor(TOKENS), output_attentions=True).attentions[0][0]
    handle.remove()
    above = torch.ones(pattern.shape[-2:], dtype=torch.bool).triu(1)
    facts: dict[str, Any] = {
        "handed": bool(seen),
        "pattern_above": float(pattern[:, above].abs().max()),
        "largest_of_attention": float(pattern.max()),
    }
    if seen:
        values = seen[0][0, 0].double()
        lowest = torch.finfo(seen[0].dtype).min
        facts["below_zero"] = bool((values[~above] == 0).all())
        facts["above_lowest"] = bool((values[above] == lowest).all())
    return facts


def idioms(model: Any) -> dict[str, str]:
    """Things that code of 2020 does: ``works``, or how it no longer does."""
    results: dict[str, str] = {}
    ids = torch.tensor(TOKENS)
    outputs: list[Any] = []
    handle = model.transformer.h[0].register_forward_hook(lambda m, a, out: outputs.append(out))
    with torch.no_grad():
        state = model(ids, output_hidden_states=True).hidden_states[1]
    handle.remove()
    first = outputs[0][0]
    works = first.shape == state.shape and torch.equal(first, state)
    shape = list(first.shape)
    results["a block's output [0] is its state [B, T, D]"] = "works" if works else f"gives {shape}"

    try:
        from transformers.modeling_gpt2 import GPT2LMHeadModel  # noqa: F401
    except ImportError as error:
        results["from transformers.modeling_gpt2 import …"] = type(error).__name__
    else:
        results["from transformers.modeling_gpt2 import …"] = "works"

    found = hasattr(transformers, "load_tf_weights_in_gpt2")
    results["transformers.load_tf_weights_in_gpt2"] = "works" if found else "is gone"

    try:
        with torch.no_grad():
            past = model(ids[:, :4], use_cache=True).past_key_values
            pairs = tuple((key, value) for key, value, *_ in past)
            whole = model(ids).logits[:, -1]
            last = model(ids[:, 4:], past_key_values=pairs).logits[:, -1]
        near = distance(last, whole) < 1e-6
        results["past_key_values as tuples of (key, value)"] = "works" if near else "gives another"
    except Exception as error:
        results["past_key_values as tuples of (key, value)"] = type(error).__name__
    return results


def tokenizer(directory: str) -> dict[str, Any]:
    """What is added to a text."""
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    return {
        "empty": loaded.encode(""),
        "words": len(loaded.encode("In the beginning")),
        "words_without": len(loaded.encode("In the beginning", add_special_tokens=False)),
        "end_of_text": loaded.eos_token_id,
    }


def main(directory: str, first: str, before: str | None = None) -> None:
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    if before is not None:
        runpy.run_path(before)
    model = load(directory)
    facts = {
        "version": transformers.__version__,
        "torch": torch.__version__,
        "tokens": TOKENS[0],
        "hidden": hidden_states(model),
        "tying": tying(directory, model),
        "gpt1": gpt1(first),
        "mask": mask(model),
        "idioms": idioms(model),
        "tokenizer": tokenizer(directory),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
