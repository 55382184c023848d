"""Ports that break in ways that no port should, for ``test_hostile_ports.py``."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings

from sample_ports import good


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def _raising(error: type[BaseException], *words: object):
    def factory(checkpoint):
        def port(tokens):
            raise error(*words)

        return port

    return factory


generator_exit = _raising(GeneratorExit)
cancelled = _raising(asyncio.CancelledError, "x" * 100_000)
mute = _raising(Mute)
endless = _raising(ValueError, "x" * 10_000_000)


def factory_cancelled(checkpoint):
    raise asyncio.CancelledError


def factory_mute(checkpoint):
    raise Mute


def cancelled_beyond(checkpoint):
    """Right, but for the way in which it refuses."""
    right = good(checkpoint)

    def port(tokens):
        if tokens.shape[1] > checkpoint.config.n_ctx:
            raise asyncio.CancelledError
        return right(tokens)

    return port


def leaves_a_thread(checkpoint):
    threading.Thread(target=time.sleep, args=(600,)).start()
    return good(checkpoint)


def warns(checkpoint):
    warnings.warn("look here", stacklevel=1)
    raise ValueError("broken")
