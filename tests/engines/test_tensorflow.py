"""TensorFlow's side: what it writes and reads back, and the published graph as a port."""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pytest
from rounding import LIMIT_FLOORS, Noise, reference_run

from gpt_verify.checkpoint import Checkpoint, open_checkpoint
from gpt_verify.checkpoint.synthetic import synthetic_tensors
from gpt_verify.checkpoint.tensorflow import (
    as_stored,
    checkpoint_prefix,
    filled_directory,
    read_with_tensorflow,
    write_openai,
)
from gpt_verify.errors import CheckpointError, PortError
from gpt_verify.numerics.precision import PRECISIONS
from gpt_verify.ports.openai_tf import OpenAITensorFlow, openai_tf
from gpt_verify.reference import Config, tensor_table

# No two sizes are equal, so that no transpose can hide.
CONFIG = Config(n_vocab=11, n_ctx=7, n_embd=12, n_head=3, n_layer=2)
TENSORS = synthetic_tensors(CONFIG, seed=3)
TOKENS = np.array([[1, 2, 3, 10, 0], [9, 9, 4, 9, 8]])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    for name in ("encoder", "merges"):
        (root / name).write_text(f"the {name}\n")
    written = root / "models" / "tiny"
    write_openai(written, CONFIG, TENSORS, root / "encoder", root / "merges")
    return written


@pytest.fixture(scope="module")
def port(directory):
    port = openai_tf(open_checkpoint(directory))
    yield port
    port.close()


def shown(port, tokens):
    """Every site that the port shows, in order, and the logits that it returns."""
    sites = []
    logits = port.activations(tokens, lambda site, value: sites.append((site, value.copy())))
    return sites, logits


def distance(value, expected):
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


# The files


def test_the_files_are_those_of_a_released_model(directory):
    assert sorted(file.name for file in directory.iterdir()) == [
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "model.ckpt.meta",
        "vocab.bpe",
    ]
    assert list(directory.parent.iterdir()) == [directory]
    assert json.loads((directory / "hparams.json").read_text()) == CONFIG.as_dict()
    assert (directory / "encoder.json").read_text() == "the encoder\n"
    assert (directory / "vocab.bpe").read_text() == "the merges\n"
    assert (directory / "checkpoint").read_text().splitlines() == [
        'model_checkpoint_path: "model.ckpt"',
        'all_model_checkpoint_paths: "model.ckpt"',
    ]
    # Where it was made is nobody's business.
    assert str(directory.parent).encode() not in (directory / "model.ckpt.meta").read_bytes()


def test_both_readers_return_the_bits_that_were_written(directory):
    ours = open_checkpoint(directory)
    assert ours.config == CONFIG
    with read_with_tensorflow(directory) as theirs:
        assert set(theirs) == set(ours.tensors) == set(TENSORS)
        for spec in tensor_table(CONFIG).values():
            assert theirs.stored_shapes[spec.name] == spec.stored_shape
            assert theirs.dtypes[spec.name] == "float32"
            assert same_bits(theirs[spec.name], TENSORS[spec.name])
            assert same_bits(ours.tensors[spec.name], TENSORS[spec.name])
        with pytest.raises(KeyError):
            theirs["h9/ln_1/g"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_f/g": None}, "missing tensor ln_f/g"),
        ({"lm_head": np.zeros(3, np.float32)}, "unknown tensor lm_head"),
        ({"wpe": np.zeros((12, 7), np.float32)}, r"wpe is float32\[12, 7\], should be .*\[7, 12\]"),
    ],
)
def test_what_is_no_gpt2_is_not_written(tmp_path, change, message):
    tensors = {k: v for k, v in {**TENSORS, **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        write_openai(tmp_path / "out", CONFIG, tensors)
    assert list(tmp_path.iterdir()) == []


def test_float64_is_not_rounded_in_silence():
    spec = tensor_table(CONFIG)["wpe"]
    with pytest.raises(CheckpointError, match=r"wpe is float64\[7, 12\], should be float32"):
        as_stored(np.zeros((7, 12)), spec)


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hparams.json").write_text("old")
    with pytest.raises(ZeroDivisionError), filled_directory(tmp_path / "out") as partial:
        (partial / "hparams.json").write_text("new")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "hparams.json"]
    assert (tmp_path / "out" / "hparams.json").read_text() == "old"
    with filled_directory(tmp_path / "out") as partial:
        (partial / "hparams.json").write_text("new")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "hparams.json"]
    assert (tmp_path / "out" / "hparams.json").read_text() == "new"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_openai(tmp_path / "file" / "out", CONFIG, TENSORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('model_checkpoint_path: "../model.ckpt"', "leads outside its directory"),
        ('model_checkpoint_path: "/etc/model.ckpt"', "leads outside its directory"),
        ('model_checkpoint_path: ".."', "leads outside its directory"),
    ],
)
def test_the_state_file_stays_in_its_directory(tmp_path, text, message):
    (tmp_path / "checkpoint").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_prefix(tmp_path)


def test_a_missing_state_file(tmp_path):
    with pytest.raises(CheckpointError, match="checkpoint: no such file"):
        read_with_tensorflow(tmp_path)


# The port


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("length", [1, 5, 7])
def test_every_site_agrees_with_the_oracle(port, dtype, length):
    tokens = np.random.default_rng(length).integers(0, CONFIG.n_vocab, (2, length))
    with ExitStack() as stack:
        judged = stack.enter_context(port.float64()) if dtype == "float64" else port
        assert judged.dtype == dtype
        sites, _logits = shown(judged, tokens)
    for row in range(2):
        known = Noise(reference_run(TENSORS, CONFIG, tokens[row]), PRECISIONS[dtype])
        assert [site for site, _ in sites] == list(known.exact)
        for site, value in sites:
            assert value.dtype == dtype, site
            counted = np.tri(length, dtype=bool) if site.endswith("attn.scores") else True
            assert known.floors(site, value[row], counted) <= LIMIT_FLOORS, site


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_look_inside_changes_no_bit(port, dtype):
    with port.float64() as float64_copy:
        judged = float64_copy if dtype == "float64" else port
        sites, logits = shown(judged, TOKENS)
        assert same_bits(logits, judged.logits(TOKENS))
        assert same_bits(logits, sites[-1][1])
        assert same_bits(logits, shown(judged, TOKENS)[1])


def test_above_the_diagonal_the_pattern_is_exactly_zero(port):
    for site, value in shown(port, TOKENS)[0]:
        if site.endswith("pattern"):
            assert (value[:, :, ~np.tri(5, dtype=bool)] == 0).all()


def test_closing_the_float64_copy_leaves_the_port(port):
    with port.float64() as float64_copy:
        float64_copy.close()
    assert port.logits(TOKENS).dtype == np.float32


def test_every_variable_is_a_parameter(port):
    parameters = list(port.parameters())
    table = tensor_table(CONFIG)
    assert [p.implies for p in parameters] == list(table)
    assert len({p.storage for p in parameters}) == len(parameters)
    for parameter in parameters:
        assert parameter.name == f"model/{parameter.implies}"
        assert parameter.shape == table[parameter.implies].stored_shape
        value = parameter.read()
        assert value.shape == parameter.shape
        assert same_bits(value.reshape(table[parameter.implies].shape), TENSORS[parameter.implies])


def test_one_variable_feeds_the_gather_and_the_head(port):
    tied, description = port.tying()
    assert tied
    assert "GatherV2" in description and "MatMul" in description


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[11]], r"indices\[0,0\] = 11 is not in \[0, 11\)"),
        ([[-1]], r"indices\[0,0\] = -1 is not in \[0, 11\)"),
        ([[1] * 8], r"indices\[0,7\] = 7 is not in \[0, 7\)"),
        ([1, 2], r"takes int\[B, T\]"),
        ([[1.0]], r"takes int\[B, T\], not float64"),
        ([[2**32 + 1]], "32 bits"),
    ],
)
def test_impossible_tokens_are_refused_in_one_line(port, tokens, message):
    for run in (port.logits, lambda t: shown(port, t)):
        with pytest.raises(PortError, match=message) as error:
            run(np.array(tokens))
        assert "\n" not in str(error.value)
    assert np.isfinite(port.logits(TOKENS)).all()


def test_a_visitor_that_raises_leaves_the_port_in_order(port):
    def visit(site, value, narrowest=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        port.activations(TOKENS, visit)
    assert same_bits(port.logits(TOKENS), port.logits(TOKENS))


def test_a_hugging_face_directory_gives_the_same_bits(port, directory):
    source = open_checkpoint(directory)
    other = Checkpoint(directory, "huggingface", CONFIG, source.tensors)
    assigned = OpenAITensorFlow(other)
    try:
        assert same_bits(assigned.logits(TOKENS), port.logits(TOKENS))
        assert not assigned.meta_graph(TOKENS, keep=True).found
    finally:
        assigned.close()


def test_damaged_files_are_refused_in_one_line(directory, tmp_path):
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    files = tuple(tmp_path.iterdir())
    with pytest.raises(PortError) as error:
        openai_tf(Checkpoint(tmp_path, "openai", CONFIG, TENSORS, files))
    assert str(error.value) == f"{tmp_path}/model.ckpt: TensorFlow: Read less bytes than requested"
    with (
        read_with_tensorflow(tmp_path) as tensors,
        pytest.raises(CheckpointError, match=r"model\.ckpt: Read less bytes than requested"),
    ):
        dict(tensors)


# The graph in .meta


def test_our_meta_holds_the_forward_graph_with_the_same_bits(port):
    meta = port.meta_graph(TOKENS, keep=True)
    assert meta.found and meta.tied
    assert "tokens (int32) is fed to GatherV2" in meta.description
    assert meta.operations["VariableV2"] == len(tensor_table(CONFIG))
    assert same_bits(meta.logits, port.logits(TOKENS))
