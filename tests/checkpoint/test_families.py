"""Directories of the families: what ``config.json`` may say, and where the tensors are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import command
from families import SIZES, family, in_memory, read, stated, written
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_agrees, tokens_of

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.families import FAMILIES
from gpt_verify.checkpoint.family_files import example, released
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import forward, logits, parameter_count, tensor_table
from gpt_verify.reference.architecture import Experts, Rope, Scaling
from gpt_verify.reference.positions import yarn_attention


@pytest.mark.parametrize("name", FAMILIES)
def test_a_directory_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    opened = open_checkpoint(written(tmp_path, name))
    tensors = synthetic_tensors(opened.config, 0)
    assert opened.config == family(name)
    assert list(opened.tensors) == list(tensor_table(opened.config))
    for tensor, value in tensors.items():
        found = opened.tensors[tensor]
        assert found.dtype == np.float32 and not found.flags.writeable
        assert np.array_equal(found, value), tensor
    own = opened.tensors.own("wte")  # type: ignore[attr-defined]
    own += 1
    assert np.array_equal(opened.tensors["wte"], tensors["wte"])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_5_writes_is_the_same_model(tmp_path: Path, name: str) -> None:
    """Ours are the words of version 4, wherever the two differ."""
    import torch
    import transformers

    source = open_checkpoint(written(tmp_path / "4", name))
    model_class = getattr(transformers, FAMILIES[name].model)
    model = model_class.from_pretrained(tmp_path / "4", dtype=torch.float32)
    model.save_pretrained(tmp_path / "5")
    again = open_checkpoint(tmp_path / "5")
    assert "rope_theta" not in json.loads((tmp_path / "5" / "config.json").read_text())
    assert again.config == source.config
    for tensor in source.tensors:
        assert np.array_equal(again.tensors[tensor], source.tensors[tensor]), tensor


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_in_the_small_models_is_degenerate(name: str) -> None:
    source = in_memory(name)
    found = dict(forward(source.tensors, source.config, tokens_of(source.config, SIZES[1])))
    assert 1.5 < found["logits"].std() < 6
    for site, value in found.items():
        assert 0.02 < value.std() < 100, site
        if site.endswith("attn.scores"):
            assert 0.3 < value.std() < 8, site
        if site.endswith("mlp.routing"):
            assert (np.count_nonzero(value, axis=0) > 0).sum() >= 3


def test_files_without_the_name_of_the_model_before_each_tensor(tmp_path: Path) -> None:
    """As BLOOM's are released."""
    from safetensors.numpy import load_file, save_file

    written(tmp_path, "bloom")
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    save_file(bare, file)
    assert list(open_checkpoint(tmp_path).tensors) == list(tensor_table(family("bloom")))


def test_a_tensor_under_both_names_is_refused(tmp_path: Path) -> None:
    """Which of the two is the model's, no file says."""
    from safetensors.numpy import load_file, save_file

    written(tmp_path, "bloom")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    name = "transformer.ln_f.weight"
    save_file({**stored, "ln_f.weight": stored[name] + 1}, file)
    with pytest.raises(
        CheckpointError, match=r"ln_f\.weight and .*ln_f\.weight are the same tensor"
    ):
        open_checkpoint(tmp_path)


def test_masks_and_tables_of_older_versions_are_not_read(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    written(tmp_path, "gpt_neox")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    stored["gpt_neox.layers.0.attention.bias"] = np.ones((1, 1, 19, 19), np.bool_)
    stored["gpt_neox.layers.2.attention.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    save_file(stored, file)
    open_checkpoint(tmp_path)
    stored["gpt_neox.layers.2.attention.rotary"] = np.ones(1, np.float32)
    save_file(stored, file)
    with pytest.raises(CheckpointError, match=r"surplus: gpt_neox\.layers\.2\.attention\.rotary$"):
        open_checkpoint(tmp_path)


def test_a_tied_head_may_be_stored_and_must_be_the_table(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    written(tmp_path, "gemma")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].copy()
    save_file(stored, file)
    open_checkpoint(tmp_path)
    stored["lm_head.weight"][3, 2] *= 1 + 1e-6
    save_file(stored, file)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight is not model\.embed_tokens\.weight"
    ):
        open_checkpoint(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    written(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    del stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.norm.weight"] = stored["model.norm.weight"][:5]
    stored["lm_head.weight"] = stored["lm_head.weight"].astype(np.int8)
    save_file(stored, file)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path)
    for what in (
        "missing: model.layers.1.mlp.up_proj.weight",
        r"wrong shape: model.norm.weight [5] (should be [24])",
        "wrong type: lm_head.weight I8",
    ):
        assert what in str(refused.value)


# Words


def test_the_base_of_rope_is_read_wherever_it_stands() -> None:
    """A base that is silently lost is the commonest mistake of all."""
    plain = {"rope_theta": None, "rope_scaling": None}
    for keys, theta in (
        ({"rope_theta": 500_000.0}, 500_000.0),
        ({"rope_theta": 500_000}, 500_000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, 77.0),
        ({"rope_parameters": {"rope_theta": 77.0}, "rope_theta": 77.0}, 77.0),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 77.0}, 77.0),
        ({}, 10_000.0),
    ):
        (rope,) = read(stated("llama", **{**plain, **keys})).keys.ropes
        assert rope == Rope(theta, 10)
    with pytest.raises(CheckpointError, match=r"rope_theta is 77\.0 and 78\.0"):
        read(
            stated(
                "llama", **{**plain, "rope_parameters": {"rope_theta": 77.0}, "rope_theta": 78.0}
            )
        )


SCALINGS = [
    ({"type": "linear", "factor": 2.0}, Scaling("linear", 2.0)),
    ({"rope_type": "linear", "factor": 2}, Scaling("linear", 2.0)),
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        Scaling("llama3", 8.0, 8192, 1.0, 4.0),
    ),
    (
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
        Scaling("yarn", 4.0, 8, 1.0, 32.0, yarn_attention(4.0)),
    ),
    (
        {"type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 3, "truncate": False},
        Scaling("yarn", 4.0, 19, 1.0, 3.0, 1.5, whole=False),
    ),
]


@pytest.mark.parametrize(("words", "scaling"), SCALINGS, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("version", [4, 5])
def test_scaled_rope(words: dict[str, Any], scaling: Scaling, version: int) -> None:
    four = {"rope_theta": 9.0, "rope_scaling": words}
    five = {"rope_theta": None, "rope_scaling": None}
    five |= {"rope_parameters": {**words, "rope_theta": 9.0}}  # type: ignore[dict-item]
    (rope,) = read(stated("llama", **(four if version == 4 else five))).keys.ropes
    assert rope == Rope(9.0, 10, scaling=scaling)


@pytest.mark.parametrize(
    ("name", "keys", "what"),
    [
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_type = "dynamic"'),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, 'rope_type = "longrope"'),
        ("llama", {"rope_scaling": {"type": "linear"}}, "missing: factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = "),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}},
            "unknown key in rope_parameters: mscale",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "missing: high_freq_factor",
        ),
        ("llama", {"hidden_act": "tanh"}, 'hidden_act = "tanh"'),
        ("llama", {"num_key_value_heads": 3}, "not divisible by n_kv = 3"),
        ("llama", {"attention_bias": 1}, "attention_bias = 1 is neither true nor false"),
        ("llama", {"vocab_size": "101"}, 'vocab_size = "101" is not an integer'),
        ("llama", {"vocab_size": None}, "missing: vocab_size"),
        ("llama", {"residual_multiplier": 0.2}, "unknown key: residual_multiplier"),
        ("llama", {"quantization_config": {}}, "unknown key: quantization_config"),
        ("mistral", {"sliding_window": 0}, "a window of 0"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is not"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "of 3 layers"),
        ("smollm3", {"no_rope_layers": [1, 2, 1]}, "no_rope_layers"),
        ("gemma", {"hidden_act": "gelu"}, 'hidden_activation = "gelu"'),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm = true, should be false"),
        ("gptj", {"rotary_dim": None}, "missing: rotary_dim"),
        ("gptj", {"rotary_dim": 8}, "8 rotary channels are not among 6"),
        ("gpt_neo", {"attention_types": [[["global", "none"], 1]]}, "attention_types"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = false"),
        ("opt", {"word_embed_proj_dim": 12}, "word_embed_proj_dim = 12, should be 24"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("mixtral", {"num_experts_per_tok": 6}, "6 of 5 experts"),
        ("mixtral", {"num_experts": 4}, "num_local_experts and num_experts disagree: 5, 4"),
        (
            "qwen2",
            {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3},
            "layer_types has sliding_attention, but there is no sliding_window",
        ),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": {"rope_theta": 9.0}}},
            "rope_parameters has no sliding_attention",
        ),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_another_function_is_refused_by_name(
    name: str, keys: dict[str, Any], what: str
) -> None:
    with pytest.raises(CheckpointError, match=what.replace("(", r"\(")):
        read(stated(name, **keys))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(FAMILIES)), JSON)
def test_whatever_a_key_says_is_understood_or_refused(
    data: st.DataObject, name: str, value: Any
) -> None:
    keys = stated(name)
    keys[data.draw(st.sampled_from(sorted(set(keys) - {"model_type"})))] = value
    try:
        config = read(keys)
    except CheckpointError:
        return
    assert tensor_table(config) and hash(config)


def test_what_a_key_may_say_besides() -> None:
    assert read(stated("gpt_neox", use_parallel_residual=False)).keys.parallel == 0
    assert read(stated("mistral", sliding_window=None)).keys.windows == (None,)
    assert read(stated("qwen3_moe", norm_topk_prob=True)).keys.experts == Experts(5, 2)
    assert read(stated("llama", attention_bias=True)).keys.bias_out
    tied = read(stated("llama", tie_word_embeddings=True))
    assert tied.tied and "lm_head" not in tensor_table(tied)
    gemma3 = read(stated("gemma3_text", sliding_window_pattern=None))
    assert gemma3.keys.windows == (5, 5, 5)
    full = ["full_attention", "sliding_attention", "full_attention"]
    assert read(stated("gemma2", layer_types=full)).keys.windows == (None, 5, None)


# Parameters of released models, as their papers or cards count them.
RELEASED = {
    "llama": (
        dict(vocab_size=128256, hidden_size=4096, num_attention_heads=32, num_hidden_layers=32),
        dict(num_key_value_heads=8, intermediate_size=14336, head_dim=None),
        8_030_261_248,
    ),
    "mistral": (
        dict(vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_hidden_layers=32),
        dict(num_key_value_heads=8, intermediate_size=14336, head_dim=None),
        7_241_732_096,
    ),
    "qwen2": (
        dict(vocab_size=151936, hidden_size=896, num_attention_heads=14, num_hidden_layers=24),
        dict(num_key_value_heads=2, intermediate_size=4864),
        494_032_768,
    ),
    "gemma": (
        dict(vocab_size=256000, hidden_size=2048, num_attention_heads=8, num_hidden_layers=18),
        dict(num_key_value_heads=1, intermediate_size=16384, head_dim=256),
        2_506_172_416,
    ),
    "gemma2": (
        dict(vocab_size=256000, hidden_size=2304, num_attention_heads=8, num_hidden_layers=26),
        dict(num_key_value_heads=4, intermediate_size=9216, head_dim=256),
        2_614_341_888,
    ),
    "mixtral": (
        dict(vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_hidden_layers=32),
        dict(num_key_value_heads=8, intermediate_size=14336, head_dim=128, num_local_experts=8),
        46_702_792_704,
    ),
    "gpt_neox": (
        dict(vocab_size=50304, hidden_size=512, num_attention_heads=8, num_hidden_layers=6),
        dict(intermediate_size=2048, rotary_pct=0.25),
        70_426_624,
    ),
    "phi": (
        dict(vocab_size=51200, hidden_size=2560, num_attention_heads=32, num_hidden_layers=32),
        dict(num_key_value_heads=32, intermediate_size=10240, partial_rotary_factor=0.4),
        2_779_683_840,
    ),
    "gptj": (
        dict(vocab_size=50400, hidden_size=4096, num_attention_heads=16, num_hidden_layers=28),
        dict(n_inner=None, rotary_dim=64),
        6_050_882_784,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_released_models(name: str) -> None:
    sizes, more, count = RELEASED[name]
    assert parameter_count(read(stated(name, **sizes, **more, sliding_window=None))) == count


# The command


@pytest.mark.parametrize("depth", [1, 2, 4, 7])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_model_of_any_depth(name: str, depth: int) -> None:
    """What goes by layer, in the file, goes on for as many as there are."""
    config = read(example(name, (*SIZES[:4], depth)))
    assert config.n_layer == depth
    assert len({depth, *map(len, (config.keys.windows, config.keys.ropes))} - {1, depth}) == 0


def test_synth(tmp_path: Path) -> None:
    done = command("synth", "--family", "qwen3", str(tmp_path / "it"))
    assert done.returncode == 0, done.stderr
    assert "qwen3, vocab 307, ctx 40, embd 48, head 4, layer 4, seed 0" in done.stdout
    assert f"gpt-verify run --checkpoint {tmp_path / 'it'} --port huggingface" in done.stdout
    opened = open_checkpoint(tmp_path / "it")
    assert opened.config.architecture == "qwen3"
    assert_agrees(
        logits(dict(opened.tensors), opened.config, np.arange(5)),
        logits(synthetic_tensors(opened.config, 0), opened.config, np.arange(5)),
    )


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--family", "gpt3"], "'gpt3' is none of"),
        (["--family", "llama", "--format", "both"], "--family"),
        (["--family", "llama", "--size", "5,5,5,2,2"], "n_embd"),
        (["--family", "llama", "--size", "7B"], "'7B' is no released size of llama that is known"),
        ([], "one of --size, --convert, --family"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_synth_refuses(tmp_path: Path, arguments: list[str], what: str) -> None:
    done = command("synth", *arguments, str(tmp_path / "it"))
    assert done.returncode == 2 and what in done.stderr


@pytest.mark.parametrize(
    ("family", "size", "parameters"),
    # As their authors count them: without the head, which is the table of tokens.
    [("qwen3", "0.6B", 596_049_920), ("llama", "3.2-1B", 1_235_814_400)],
)
def test_a_released_size(family: str, size: str, parameters: int) -> None:
    """The keys are read as any file's; its tensors are made when they are looked up."""
    config = read(released(family, size))
    assert parameter_count(config) == parameters and config.tied
    tensors = synthetic_tensors(config, 1)
    assert tensors["h0/ln_1/g"].shape == (config.n_embd,)


def test_what_is_about_gpt2_alone_says_so(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    done = command("lens", "--checkpoint", tmp_path, "--tokens", "1,2")
    assert done.returncode == 2 and "the lens does not read llama yet" in done.stdout + done.stderr


def test_a_family_that_is_not_known(tmp_path: Path) -> None:
    written(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(stated("llama", model_type="falcon")))
    with pytest.raises(
        CheckpointError,
        match=r"is a family that is not supported; what can be judged: gpt2, .*llama",
    ):
        open_checkpoint(tmp_path)
