"""Which files may be read: those of the directory, and those it links to in the hub's cache.

A checkpoint from a stranger must not make us read another file of the user's. The cache of the hub
keeps a model as links, ``models--NAME/snapshots/REVISION/FILE`` → ``../../blobs/HASH``, and older
versions of it linked from any directory that a user asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from gpt_verify.checkpoint.files import LARGEST_JSON, need_at_most, refusal


def hub_cache() -> Path:
    """The directory in which ``huggingface_hub`` keeps models; it is not imported for this."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if stated := os.environ.get(name):
            return Path(stated).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return Path(home).expanduser() / "hub"


def within(directory: Path, file: Path) -> bool:
    """Whether a file, links followed, lies in the directory or in the hub's cache."""
    actual, inside = (Path(os.path.realpath(path)) for path in (file, directory))
    allowed = [inside, Path(os.path.realpath(hub_cache()))]
    if inside.parent.name == "snapshots":
        allowed.append(inside.parent.parent / "blobs")  # of a cache that is kept elsewhere
    return any(actual.is_relative_to(place) for place in allowed)


def need_within(directory: Path, *files: Path) -> None:
    """CheckpointError for the first that lies elsewhere."""
    for file in files:
        if not within(directory, file):
            raise refusal(
                file,
                f"is a link to {os.path.realpath(file)}, outside its directory and the hub's "
                "cache; copy the file into the directory",
            )


def optional(directory: Path, name: str) -> Path | None:
    """A file of a tokenizer, if there is one; something else under its name is refused."""
    file = directory / name
    if not os.path.lexists(file):
        return None
    need_within(directory, file)
    need_at_most(file, LARGEST_JSON)
    return file
