"""A model of the hub by its name, from a cache, without network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
from file_layouts import HUB, in_shards
from huggingface_directory import CONFIG, state, tensors, write
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from gpt_verify.checkpoint import open_checkpoint
from gpt_verify.command.cli import main
from gpt_verify.errors import CheckpointError, MissingDependency

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; offline is what it is, whatever the environment says."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, name: str, made: Path) -> Path:
    """The files as the cache of the hub keeps them."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    for directory in (home / "blobs", home / "refs", snapshot):
        directory.mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(made.iterdir())):
        file.rename(home / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_from_the_cache(cache: Path, tmp_path: Path, name: str) -> None:
    made = write(tmp_path / "made", state(), **HUB)
    snapshot = cached(cache, name, made)
    checkpoint = open_checkpoint(name)
    assert checkpoint.path == snapshot
    assert checkpoint.config == CONFIG
    assert checkpoint.tensors["wte"].tobytes() == tensors()["wte"].tobytes()


def test_shards_from_the_cache(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    in_shards(tmp_path / "made")
    cached(cache, "me/sharded", tmp_path / "made")
    found = open_checkpoint("me/sharded").tensors["ln_f/g"]
    assert found.tobytes() == tensors()["ln_f/g"].tobytes()


def test_the_lens_reads_a_model_by_its_name_as_by_its_directory(
    cache: Path, tmp_path: Path
) -> None:
    snapshot = cached(cache, "me/small", write(tmp_path / "made", state(), **HUB))
    readings = []
    for n, given in enumerate(("me/small", snapshot)):
        out = tmp_path / f"{n}.json"
        words = ["--tokens", "1,2,3", "--json", str(out), "--quiet"]
        assert main(["lens", "--checkpoint", str(given), *words]) == 0
        readings.append(json.loads(out.read_text(encoding="utf-8"))["readings"])
    assert readings[0] == readings[1] and readings[0][0]["lens"]["tokens"] == [1, 2, 3]


def test_not_in_the_cache(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("models/124M")
    assert str(caught.value) == (
        "models/124M: no such directory, and the hub's cache has no such model (HF_HUB_OFFLINE is "
        "set)"
    )


@pytest.mark.parametrize("path", ["/models/124M", "a/b/c", "~/124M", "a b", "tests/124M"])
def test_what_can_be_no_name(
    cache: Path, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()  # so that the last one can only be misspelt
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value) == f"{Path(path)}: no such directory"


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (EntryNotFoundError("404"), "and the hub has no such model, or one without config.json"),
        (OSError("No space left\non the disk"), "from the hub: No space left"),
        (ValueError(), "from the hub: ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_says(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, what: str
) -> None:
    def download(*of: str) -> str:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint("me/model")
    assert str(refused.value).startswith("me/model: no such directory")
    assert what in str(refused.value) and "\n" not in str(refused.value)


def test_without_its_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"me/model: no such directory; .*huggingface_hub"):
        open_checkpoint("me/model")


def test_a_path_on_the_command_line_stays_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``./gpt2`` is no model of the hub, although ``gpt2`` is in its cache."""
    cached(cache, "gpt2", write(tmp_path / "made", state(), **HUB))
    monkeypatch.chdir(tmp_path)
    words = ["run", "--port", "sample_ports:good", "--length", "3", "--quiet", "--checkpoint"]
    assert main([*words, "gpt2"]) == 0
    capsys.readouterr()
    assert main([*words, "./gpt2"]) == 2
    assert capsys.readouterr().err == f"gpt-verify: {tmp_path}/gpt2: no such directory\n"


def test_no_report_replaces_a_file_beside_the_one_that_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, state(), **HUB)
    (tmp_path / "vocab.json").write_text("{}")
    words = ["run", "--port", "sample_ports:good", "--json", str(tmp_path / "vocab.json")]
    assert main([*words, "--checkpoint", str(tmp_path / "config.json")]) == 2
    assert "--json would replace an input of the run" in capsys.readouterr().err
