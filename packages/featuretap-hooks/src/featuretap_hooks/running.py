"""Which forwards are watched in this thread just now, and how they wait for one of the same model.

A hook of the user's may call an extractor of the model that runs: what happens there is no part of the
forward around it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .calls.module_hooks import unwatched
from .calls.patching import unrecorded
from .captures import Captures

__all__ = ["RUNNING", "is_running", "paused"]


class _Running(threading.local):
    def __init__(self) -> None:
        self.forwards: list[tuple[nn.Module, Captures]] = []


#: The forwards of this thread, innermost last: the model, and what takes its values.
RUNNING = _Running()


def is_running(model: nn.Module) -> bool:
    """Say whether a forward of ``model`` is watched in this thread."""
    return any(running is model for running, _ in RUNNING.forwards)


@contextmanager
def paused() -> Iterator[None]:
    """While entered, the forwards that run take, name and stop nothing."""
    waiting = [(captures.missing, captures.missing.copy()) for _, captures in RUNNING.forwards]
    try:
        # Emptied, not exchanged: hooks hold on to the set.
        for missing, _ in waiting:
            missing.clear()
        with unwatched(), unrecorded():
            yield
    finally:
        for missing, names in waiting:
            missing.update(names)
