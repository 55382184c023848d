"""A checkpoint that is damaged costs one line and exit status 2, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import SIZE, Run, complaint

from gpt_verify.command.cli import main

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _points_at(directory: Path, where: str) -> None:
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{where}"\n')


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _set(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestBadCheckpoints:
    """What a damaged directory says; the readers' own tests go into each format."""

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda d: shutil.rmtree(d), "no such directory"),
            (lambda d: (d / "config.json").unlink(), "neither an OpenAI checkpoint"),
            (lambda d: (d / "config.json").write_text("{"), "config.json"),
            (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
            (lambda d: _cut(d / "model.safetensors", 1000), "model.safetensors"),
            (lambda d: _cut(d / "model.safetensors", 4), "model.safetensors"),
            (lambda d: _set(d / "config.json", n_layer=3), "n_layer = 3"),
            (lambda d: _set(d / "config.json", n_embd=1 << 40), "n_embd"),
            (lambda d: _set(d / "config.json", n_head=5), "n_head"),
            (lambda d: _set(d / "config.json", surprise=1), "surprise"),
        ],
        ids=[
            "missing",
            "no_config",
            "config_no_json",
            "no_tensors",
            "tensors_cut",
            "header_cut",
            "layers_missing",
            "absurd_width",
            "heads_do_not_divide",
            "unknown_key",
        ],
    )
    def test_one_line_and_2(
        self, run: Run, damaged: Path, damage: Callable[[Path], object], says: str
    ) -> None:
        damage(damaged)
        before = sorted(damaged.rglob("*"))
        status, out, err = run(checkpoint=damaged)
        assert status == 2
        assert out == ""
        assert says in complaint(err)
        assert sorted(damaged.rglob("*")) == before


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("openai") / "checkpoint"
    assert main(["synth", "--size", SIZE, str(directory)]) == 0
    return directory


class TestBadOpenAICheckpoints:
    def test_intact(self, run: Run, openai: Path) -> None:
        assert run(checkpoint=openai)[0] == 0

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda d: (d / "hparams.json").unlink(), "hparams.json"),
            (lambda d: (d / "checkpoint").unlink(), "checkpoint"),
            (lambda d: (d / INDEX).unlink(), INDEX),
            (lambda d: (d / DATA).unlink(), DATA),
            (lambda d: _cut(d / DATA, 5000), DATA),
            (lambda d: _cut(d / INDEX, 100), INDEX),
            (lambda d: _cut(d / INDEX, 0), INDEX),
            (lambda d: _flip(d / DATA, 5000), DATA),
            (lambda d: _flip(d / INDEX, 100), INDEX),
            (lambda d: _set(d / "hparams.json", n_embd=15), "wte"),
            (lambda d: _set(d / "hparams.json", n_layer=1), "h1/"),
            (lambda d: _set(d / "hparams.json", n_vocab=1 << 60), "n_vocab"),
            (lambda d: _set(d / "hparams.json", n_ctx="24"), "n_ctx"),
            (lambda d: _set(d / "hparams.json", surprise=1), "surprise"),
            (lambda d: _points_at(d, "/etc/passwd"), "outside"),
            (lambda d: _points_at(d, "../other/model.ckpt"), "outside"),
        ],
        ids=[
            "no_hparams",
            "no_checkpoint",
            "no_index",
            "no_data",
            "data_cut",
            "index_cut",
            "index_empty",
            "data_bit",
            "index_bit",
            "other_width",
            "layer_too_many",
            "absurd_vocabulary",
            "size_is_text",
            "unknown_key",
            "points_at_absolute",
            "points_at_parent",
        ],
    )
    def test_one_line_and_2(
        self,
        run: Run,
        openai: Path,
        tmp_path: Path,
        damage: Callable[[Path], object],
        says: str,
    ) -> None:
        damaged = Path(shutil.copytree(openai, tmp_path / "damaged"))
        damage(damaged)
        before = sorted(tmp_path.rglob("*"))
        status, out, err = run(checkpoint=damaged)
        assert status == 2
        assert "verified:" not in out
        assert says in complaint(err)
        assert sorted(tmp_path.rglob("*")) == before
