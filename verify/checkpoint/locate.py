"""What a user writes after ``--checkpoint`` becomes a directory and the format that it is in."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from typing import Literal

from gpt_verify.checkpoint.files import refusal
from gpt_verify.checkpoint.gpt1 import SHAPES
from gpt_verify.text import nearest, nearest_path

Kind = Literal["openai", "huggingface", "gpt1"]

#: A file that is written where its directory is meant → the format that it belongs to.
_FILES: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("gpt1", re.compile(r"params_(shapes\.json|[0-9]\.npy)")),
    ("openai", re.compile(r"checkpoint|hparams\.json|encoder\.json|vocab\.bpe")),
    ("openai", re.compile(r".+\.(index|meta|data-[0-9]{5}-of-[0-9]{5})")),
    (
        "huggingface",
        re.compile(
            r"config\.json|vocab\.json|merges\.txt|tokenizer(_config)?\.json|"
            r"(model|pytorch_model)(-[0-9]{5}-of-[0-9]{5})?\.(safetensors|bin)(\.index\.json)?"
        ),
    ),
)
#: ``name`` or ``owner/name``, as the hub has them.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?")


def locate(path: Path) -> tuple[Path, Kind]:
    """The directory and its format.

    Raises:
        CheckpointError: no such directory and no such model of the hub, or a directory of no format
            or of two.
        MissingDependency: a model of the hub is meant, and huggingface_hub is not installed.
    """
    if path.is_dir():
        return path, _kind(path)
    if os.path.lexists(path):
        return path.parent, _kind_of_file(path)
    text = str(path)
    misspelt = path.parent != Path() and path.parent.is_dir()
    if _HUB_ID.fullmatch(text) and not misspelt:
        from gpt_verify.checkpoint.hub import fetched

        return fetched(text), "huggingface"
    raise refusal(path, f"no such directory{nearest_path(path)}")


def _kind(path: Path) -> Kind:
    has = {
        name
        for name in ("config.json", "hparams.json", "checkpoint", SHAPES)
        if os.path.lexists(path / name) and not (path / name).is_dir()
    }
    if {"config.json", "hparams.json"} <= has:
        raise refusal(
            path,
            "holds an OpenAI checkpoint (hparams.json) and a Hugging Face one (config.json); say "
            f"which: --checkpoint {path}/hparams.json or --checkpoint {path}/config.json",
        )
    if SHAPES in has and "config.json" not in has:
        return "gpt1"
    if "config.json" in has:
        return "huggingface"
    if has:
        return "openai"
    raise refusal(
        path,
        "neither an OpenAI checkpoint (hparams.json) nor a Hugging Face one (config.json)"
        f"{_meant(path)}",
    )


def _meant(path: Path) -> str:
    """A directory in it that is a checkpoint, or a file in it that is almost one's."""
    try:
        inside = sorted(islice(path.iterdir(), 10_000))
    except OSError:
        return ""
    marks = ("hparams.json", "config.json")
    for directory in inside:
        if any((directory / mark).is_file() for mark in marks):
            return f"; did you mean {directory}?"
    for entry in inside:
        if hint := nearest(entry.name, marks):
            return f"; it has {entry.name}{hint}"
    return ""


def _kind_of_file(path: Path) -> Kind:
    for kind, names in _FILES:
        if names.fullmatch(path.name):
            return kind
    raise refusal(path, "is a file of no checkpoint that is read; --checkpoint takes a directory")
