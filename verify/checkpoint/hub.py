"""A model of Hugging Face's hub, or of the cache that it leaves, which needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_verify.checkpoint.files import read_json, refusal
from gpt_verify.checkpoint.hf_pickled import SINGLE
from gpt_verify.checkpoint.hf_weights import PICKLED, PICKLED_SHARDS, SHARDED
from gpt_verify.errors import CheckpointError, MissingDependency, install, shortened

_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json")


def fetched(name: str) -> Path:
    """The directory in the cache that holds a model's files, fetched where they are not there.

    Raises:
        CheckpointError: there is no such directory, and the hub and its cache have no such model.
        MissingDependency: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise MissingDependency(
            f"{name}: no such directory; a model of the hub needs huggingface_hub, which is not "
            f"installed: {install('torch')}"
        ) from None

    def get(file: str) -> Path | None:
        """None where the model has no such file."""
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:  # offline as well: nothing of that name is in the cache
            return None

    with _silence():
        try:
            config = get("config.json")
            if config is None:
                why = _absent(constants.HF_HUB_OFFLINE)
                raise refusal(Path(name), f"no such directory, and {why}")
            for _ in _files(get):
                pass
        except CheckpointError:
            raise
        except Exception as error:  # of the hub, of its HTTP library, or of the disk
            first = shortened((str(error).strip().splitlines() or [type(error).__name__])[0])
            raise refusal(Path(name), f"no such directory; from the hub: {first}") from None
    return config.parent


def _absent(offline: bool) -> str:
    if offline:
        return "the hub's cache has no such model (HF_HUB_OFFLINE is set)"
    return "the hub has no such model, or one without config.json, or could not be asked"


def _files(get: Callable[[str], Path | None]) -> Iterator[Path]:
    """The weights in the order in which they are looked for, and the tokenizer."""
    for name in (SINGLE, SHARDED, PICKLED, PICKLED_SHARDS):
        if (found := get(name)) is None:
            continue
        yield found
        if name in (SHARDED, PICKLED_SHARDS):
            shards = read_json(found).get("weight_map")
            for shard in sorted(set(shards.values())) if isinstance(shards, dict) else ():
                if (part := get(shard)) is not None:
                    yield part
        break
    for name in _TOKENIZER:
        if (found := get(name)) is not None:
            yield found


@contextmanager
def _silence() -> Iterator[None]:
    """No progress bars and no warnings of huggingface_hub."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        enable_progress_bars()
