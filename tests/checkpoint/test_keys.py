"""Keys of a configuration that is not modelled: ignored, refused by name, or left to the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_layouts import HUB
from huggingface_directory import CONFIG, refused, state, write
from hypothesis import given
from hypothesis import strategies as st

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.keys import altering, harmless
from gpt_verify.command.cli import main
from gpt_verify.errors import UsageError
from gpt_verify.judging.options import Options
from gpt_verify.judging.repeat import repeat_command

#: What people and programs write into config.json of a GPT-2 that remains one.
METADATA = [
    *("author", "authors", "created_date", "createdAt", "license", "_commit_hash", "model_name"),
    *("training_args", "dataset_url", "datasets", "language", "tags", "description", "base_model"),
    *("unsloth_version", "finetuned_from", "timestamp", "model_version", "attention_dropout"),
    *("_attn_implementation_internal", "loss_type", "weight_decay", "tokenizer_name", "eos_token"),
]
#: Keys of other families, and of forks that keep the name gpt2.
ALTERING = [
    *("rope_theta", "rope_scaling", "rope_parameters", "rotary_dim", "use_rotary", "alibi"),
    *("sliding_window", "n_experts", "num_local_experts", "num_experts_per_tok", "moe_layers"),
    *("num_key_value_heads", "multi_query", "head_dim", "hidden_act", "rms_norm_eps", "norm_type"),
    *("attention_bias", "parallel_attn", "attn_logit_softcapping", "query_pre_attn_scalar"),
    *("quantization_config", "mup_scale_qk_dot_by_d", "scale_embeddings", "layer_types"),
    *("qk_layernorm", "position_embedding_type", "use_qk_norm", "embedding_multiplier"),
]
#: Nobody can tell from their words.
UNKNOWN = ["my_key", "d_model", "architecture", "extra", "ctx", "gating", "attn_type", "auto_map"]


@pytest.mark.parametrize("key", METADATA)
def test_metadata_is_ignored_with_a_remark(tmp_path: Path, key: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path, state(), **HUB, **{key: "words"}))
    assert checkpoint.config == CONFIG
    what = f"config.json: ignored, as saying nothing of the function: {key}"
    assert checkpoint.remarks == (what,)


@pytest.mark.parametrize("key", ALTERING)
def test_what_alters_the_function_is_refused_by_name(tmp_path: Path, key: str) -> None:
    said = f"{tmp_path}/config.json: {key} = 5: alters the function, and is not modelled"
    assert refused(write(tmp_path, state(), **HUB, **{key: 5})) == said
    with pytest.raises(Exception, match="alters the function, and is not modelled"):
        open_checkpoint(tmp_path, [key])


@pytest.mark.parametrize("key", ALTERING)
@pytest.mark.parametrize("off", [None, False])
def test_switched_off_it_does_not(tmp_path: Path, key: str, off: object) -> None:
    assert open_checkpoint(write(tmp_path, state(), **HUB, **{key: off})).config == CONFIG


@pytest.mark.parametrize("key", UNKNOWN)
def test_the_rest_is_left_to_the_user(tmp_path: Path, key: str) -> None:
    said = f"unknown key: {key} = 3; where it does not alter what is computed: --ignore-key {key}"
    assert refused(write(tmp_path, state(), **HUB, **{key: 3})) == f"{tmp_path}/config.json: {said}"
    (remark,) = open_checkpoint(tmp_path, [key]).remarks
    assert remark == f"config.json: ignored, as --ignore-key says: {key} = 3"


@given(
    st.sampled_from(["rope", "rotary", "norm", "scale", "head", "window", "experts", "quant"]),
    st.sampled_from(["author", "version", "date", "name", "seed", "url", "info", "training"]),
    st.sampled_from(["_", "-", "."]),
    st.booleans(),
)
def test_no_word_makes_a_telling_one_harmless(
    telling: str, word: str, between: str, first: bool
) -> None:
    joined = between.join((telling, word) if first else (word, telling))
    assert harmless(word)
    assert not harmless(joined)
    assert not harmless(f"{word}{telling.title()}")
    assert harmless(f"{joined}_dropout")


def test_a_size_as_another_family_states_it() -> None:
    assert not altering("num_key_value_heads", 3, {"num_key_value_heads": 3})
    assert altering("num_key_value_heads", 1, {"num_key_value_heads": 3})
    assert altering("num_key_value_heads", True, {"num_key_value_heads": 1})


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, state(), **HUB)
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path, ["my_key"])
    assert str(caught.value) == f"--ignore-key my_key: {tmp_path}/config.json has no such key"


@pytest.mark.parametrize(
    ("key", "value"), [("layer_norm_epsilon", 1e-6), ("activation_function", "relu")]
)
def test_what_is_modelled_cannot_be_ignored(tmp_path: Path, key: str, value: object) -> None:
    write(tmp_path, state(), **{**HUB, key: value})
    with pytest.raises(Exception, match=f"{key} = .*, should be"):
        open_checkpoint(tmp_path, [key])


def test_the_command_takes_it_and_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, state(), **HUB, my_key=3)
    out = tmp_path / "out.json"
    words = ["run", "--checkpoint", str(tmp_path), "--port", "sample_ports:good", "--length", "3"]
    assert main(words) == 2
    assert "--ignore-key my_key" in capsys.readouterr().err
    assert main([*words, "--ignore-key", "my_key", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "  config.json: ignored, as --ignore-key says: my_key = 3\n" in said
    report = json.loads(out.read_text(encoding="utf-8"))
    remarks = ["config.json: ignored, as --ignore-key says: my_key = 3"]
    assert report["checkpoint"]["remarks"] == remarks
    assert "--ignore-key=my_key" in report["repeat"]
    options = Options(ignore_keys=("a", "b"))
    assert repeat_command(None, (), options).endswith("--ignore-key=a --ignore-key=b")


@pytest.mark.parametrize(
    "words",
    [
        ["claims", "tie-transpose", "--quiet"],
        ["power", "--quick", "--fault", "gelu-erf", "--quiet", "--jobs", "1"],
        ["lens", "--tokens", "1,2,3"],
        ["diagnose", "--port", "sample_ports:good", "--length", "3"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_that_opens_a_checkpoint_takes_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, state(), **HUB, my_key=3)
    command = [*words, "--checkpoint", str(tmp_path)]
    assert main(command) == 2
    assert "--ignore-key my_key" in capsys.readouterr().err
    main([*command, "--ignore-key", "my_key"])
    assert "unknown key" not in capsys.readouterr().err
