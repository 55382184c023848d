"""transformers without its progress bars, warnings and retries on the screen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars, warnings or retries on the screen while it loads; as before afterwards.

    What goes wrong for good is raised, and worded in one line.
    """
    from huggingface_hub.utils import logging as hub

    log = transformers.utils.logging
    level, bars, hub_level = log.get_verbosity(), log.is_progress_bar_enabled(), hub.get_verbosity()
    log.set_verbosity_error()
    log.disable_progress_bar()
    hub.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        hub.set_verbosity(hub_level)
        if bars:
            log.enable_progress_bar()
