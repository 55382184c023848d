"""OpenAI's directories: read, or refused with the name of what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle, written_by_tensorflow
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.checkpoint.files import Malformed
from gpt_verify.checkpoint.openai_state import parse_state
from gpt_verify.errors import CheckpointError
from gpt_verify.reference import Config, tensor_table

CONFIG = Config(n_vocab=11, n_ctx=7, n_embd=6, n_head=3, n_layer=2)
Tensors = dict[str, np.ndarray]


def tensors(config: Config = CONFIG) -> Tensors:
    rng = np.random.default_rng(0)
    return {
        f"model/{name}": rng.standard_normal(spec.stored_shape).astype(np.float32)
        for name, spec in tensor_table(config).items()
    }


def write(directory: Path, values: Tensors) -> Path:
    directory.mkdir(exist_ok=True)
    write_bundle(directory / "model.ckpt", values)
    (directory / "model.ckpt.meta").write_bytes(b"a graph, which is not read")
    (directory / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    (directory / "hparams.json").write_text(json.dumps(CONFIG.as_dict()))
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write(tmp_path / "124", tensors())


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading -------------------------------------------------------------------------------------


def test_what_tensorflows_saver_wrote(tmp_path_factory: pytest.TempPathFactory) -> None:
    written = written_by_tensorflow(tmp_path_factory)
    state = (written / "gpt2" / "checkpoint").read_text()
    expected = np.load(written / "gpt2.npz")
    checkpoint = open_checkpoint(written / "gpt2")
    assert checkpoint.config == CONFIG
    assert list(checkpoint.tensors) == list(tensor_table(CONFIG))
    for name, spec in tensor_table(CONFIG).items():
        value = checkpoint.tensors[name]
        assert value.shape == spec.shape
        assert value.tobytes() == expected[name.replace("/", "|")].tobytes()
    assert "model.ckpt" in state


def test_an_absolute_path_that_leads_inside_is_accepted(directory: Path) -> None:
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{directory}/model.ckpt"')
    assert open_checkpoint(directory).config == CONFIG


def test_everything_that_a_checkpoint_has(directory: Path) -> None:
    (directory / "encoder.json").write_text("{}")
    (directory / "vocab.bpe").write_text("")
    checkpoint = open_checkpoint(str(directory))
    assert checkpoint.format == "openai"
    assert checkpoint.path == directory
    assert checkpoint.encoder == directory / "encoder.json"
    assert checkpoint.merges == directory / "vocab.bpe"
    assert sorted(file.name for file in checkpoint.files) == sorted(os.listdir(directory))


def test_tensors_are_lazy_read_only_views_in_the_shape_of_the_table(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    stored = tensors()
    for name, spec in tensor_table(CONFIG).items():
        value = checkpoint.tensors[name]
        assert (value.shape, value.dtype) == (spec.shape, np.float32)
        assert np.array_equal(value, stored[f"model/{name}"].reshape(spec.shape))
        assert not value.flags.writeable
        assert np.shares_memory(value, checkpoint.tensors[name])
    assert len(checkpoint.tensors) == len(tensor_table(CONFIG))
    assert "wte" in checkpoint.tensors
    assert "model/wte" not in checkpoint.tensors
    with pytest.raises(KeyError, match="nobody"):
        checkpoint.tensors["nobody"]


def test_a_damaged_tensor_is_refused_when_it_is_looked_up(directory: Path) -> None:
    data = directory / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"\xaa")  # the last one by name is wte
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensors["wpe"].shape == (7, 6)
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: checksum of model/wte"):
        checkpoint.tensors["wte"]


# --- names, shapes, types ------------------------------------------------------------------------


def rename(values: Tensors, old: str, new: str) -> None:
    values[new] = values.pop(old)


def drop(values: Tensors, *names: str) -> None:
    for name in names:
        del values[name]


TENSORS: dict[str, Callable[[Tensors], object]] = {
    "missing: model/h0/ln_1/g": lambda t: drop(t, "model/h0/ln_1/g"),
    "missing: model/wte": lambda t: drop(t, "model/wte"),
    "missing: model/wte, model/wpe, model/h0/ln_1/g and 25 more; surplus: x": lambda t: (
        t.clear() or t.update(x=np.ones(1, np.float32))
    ),
    "missing: model/wpe; surplus: wpe": lambda t: rename(t, "model/wpe", "wpe"),
    "surplus: model/wte/lora_A": lambda t: t.update({"model/wte/lora_A": np.ones(1, np.float32)}),
    "surplus: temperature": lambda t: t.update(temperature=np.array(3, np.int64)),
    "surplus: model/h00/ln_1/g": lambda t: t.update({"model/h00/ln_1/g": np.ones(6, np.float32)}),
    "wrong shape: model/h1/mlp/c_fc/w [1, 24, 6] (should be [1, 6, 24])": lambda t: t.update(
        {"model/h1/mlp/c_fc/w": t["model/h1/mlp/c_fc/w"].reshape(1, 24, 6)}
    ),
    "wrong shape: model/h1/mlp/c_fc/w [6, 24] (should be [1, 6, 24])": lambda t: t.update(
        {"model/h1/mlp/c_fc/w": t["model/h1/mlp/c_fc/w"][0]}
    ),
    "wrong type: model/ln_f/b int32 (should be float32 or float16 or bfloat16 or float64)": (
        lambda t: t.update({"model/ln_f/b": t["model/ln_f/b"].astype(np.int32)})
    ),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_not_those_of_the_table(tmp_path: Path, what: str) -> None:
    values = tensors()
    TENSORS[what](values)
    directory = write(tmp_path / "it", values)
    assert refused(directory) == f"{directory}/model.ckpt.index: {what}"


@pytest.mark.parametrize(
    ("size", "value", "what"),
    [
        ("n_vocab", 12, "n_vocab = 12, but model/wte in model.ckpt.index is [11, 6], which makes"),
        ("n_ctx", 6, "n_ctx = 6, but model/wpe in model.ckpt.index is [7, 6], which makes it 7"),
        ("n_embd", 9, "n_embd = 9, but model/wte in model.ckpt.index is [11, 6], which makes it 6"),
        ("n_layer", 3, "n_layer = 3, but the last layer in model.ckpt.index is that of model/h1/"),
        ("n_layer", 1, "which makes it 2"),
        ("n_head", 4, "n_embd = 6 is not divisible by n_head = 4"),
        ("n_head", 0, "n_head = 0 is outside 1 …"),
        ("n_layer", 10**9, "n_layer = 1000000000 is outside 1 … 4096"),
        ("n_layer", True, "n_layer = true is not an integer"),
        ("n_layer", "2", 'n_layer = "2" is not an integer'),
        ("n_layer", 2.0, "n_layer = 2.0 is not an integer"),
        ("n_layer", float("nan"), "NaN is not a number of JSON"),
        ("n_experts", 2, "n_experts = 2: alters the function, and is not modelled"),
        (
            "bad\nkey",
            2,
            "unknown key: bad\\nkey = 2; where it does not alter what is computed: --ignore-key",
        ),
    ],
)
def test_sizes_that_are_wrong(directory: Path, size: str, value: object, what: str) -> None:
    (directory / "hparams.json").write_text(json.dumps({**CONFIG.as_dict(), size: value}))
    said = refused(directory)
    assert said.startswith(f"{directory}/hparams.json: ")
    assert what in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("[]", "not a JSON object"),
        ("{", "not JSON: "),
        ("[" * 100_000, "nested too deeply"),
        ('{"n_ctx": 7, "n_ctx": 7}', "key 'n_ctx' occurs twice"),
        ('{"n_ctx": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"n_ctx": Infinity}', "Infinity is not a number of JSON"),
        ("{}", "missing: n_ctx, n_embd, n_head, n_layer, n_vocab"),
        ("\udcff", "not JSON: 'utf-8' codec can't decode"),
    ],
)
def test_hparams_that_are_no_hparams(directory: Path, text: str, what: str) -> None:
    (directory / "hparams.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refused(directory).startswith(f"{directory}/hparams.json: {what}")


# --- the state file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the file is empty"),
        ("nonsense", 'line 1 is not of the form `name: "value"`'),
        ('model_checkpoint_path: "model.ckpt', "line 1 is not of the form"),
        ('all_model_checkpoint_paths: "x"\nwhat', "line 2 is not of the form"),
        ('all_model_checkpoint_paths: "x"', "has 0 times model_checkpoint_path"),
        ('model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"', "has 2 times model_checkpoint"),
        ("model_checkpoint_path: 3", "model_checkpoint_path is not a string"),
        ('model_checkpoint_path: ""', "model_checkpoint_path is empty or has a NUL"),
        ('model_checkpoint_path: "a\\0"', "model_checkpoint_path is empty or has a NUL"),
        ('model_checkpoint_path: "a\\8"', "escape \\8 is not known"),
        ('stranger: "a"', "field stranger is not known"),
        ('model_checkpoint_path: "../other/model.ckpt"', "'../other/model.ckpt' leads outside its"),
        ('model_checkpoint_path: "x/../model.ckpt"', "'x/../model.ckpt' leads outside its"),
        (
            'model_checkpoint_path: "/etc/passwd"',
            "names /etc/passwd, which leads outside its",
        ),
        ('model_checkpoint_path: "."', "leads outside its directory"),
        ('model_checkpoint_path: "link/model.ckpt"', "leads outside its directory"),
        ('model_checkpoint_path: "loop/model.ckpt"', ""),
    ],
)
def test_state_files_that_are_refused(directory: Path, text: str, what: str) -> None:
    other = shutil.copytree(directory, directory.parent / "other")
    (directory / "link").symlink_to(other)
    (directory / "loop").symlink_to(directory / "loop")
    (directory / "checkpoint").write_text(text)
    said = refused(directory)
    assert what in said
    assert said.startswith(str(directory))


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001", "meta"])
def test_a_link_out_of_the_directory_is_refused(directory: Path, suffix: str) -> None:
    file, elsewhere = directory / f"model.ckpt.{suffix}", directory.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    what = f"{file}: is a link to {elsewhere}, outside its directory and the hub's cache; copy the"
    assert refused(directory) == f"{what} file into the directory"


def test_the_forms_that_tensorflow_writes() -> None:
    text = (
        b'model_checkpoint_path: "m\\303\\244 \\"x\\"\\\\\\x41\\t"\r\n'
        b'all_model_checkpoint_paths: "model.ckpt"\n'
        b"all_model_checkpoint_timestamps: 1.5e+09\nlast_preserved_timestamp: -1\n\n"
    )
    assert parse_state(text) == 'mä "x"\\A\t'


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.binary(), st.binary().map(lambda b: b'model_checkpoint_path: "' + b + b'"')))
def test_any_bytes_as_state_file(text: bytes) -> None:
    try:
        assert parse_state(text)
    except Malformed as error:
        assert "\0" not in str(error)


# --- files ---------------------------------------------------------------------------------------

NEEDED = ["checkpoint", "hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"]


@pytest.mark.parametrize("name", NEEDED)
def test_missing_and_empty_files(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert refused(directory) == f"{directory}/{name}: no such file"
    (directory / name).touch()
    assert re.match(f"{directory}/{name}: (the file is empty|cut off: 0 bytes)", refused(directory))
    (directory / name).unlink()
    (directory / name).mkdir()
    assert refused(directory) == f"{directory}/{name}: not a regular file"


def test_optional_files_are_optional_but_must_be_files(directory: Path) -> None:
    (directory / "model.ckpt.meta").unlink()
    assert open_checkpoint(directory).encoder is None
    (directory / "encoder.json").mkdir()
    assert refused(directory) == f"{directory}/encoder.json: not a regular file"
    (directory / "encoder.json").rmdir()
    (directory / "vocab.bpe").symlink_to("nowhere")
    assert refused(directory) == f"{directory}/vocab.bpe: no such file"


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "none") == f"{tmp_path}/none: no such directory"
    assert "neither an OpenAI checkpoint" in refused(tmp_path)
