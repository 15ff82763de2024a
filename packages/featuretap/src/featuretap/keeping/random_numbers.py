"""The state of the random generators of torch, Python and NumPy: looked at, and set back."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["RandomState", "foreign_random_state"]


class RandomState:
    """The state of torch's random generators on the CPU and on every CUDA device in use."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if in_use else []

    @property
    def moved(self) -> bool:
        """Whether numbers were drawn since."""
        return self._content() != RandomState()._content()

    def _content(self) -> list[bytes]:
        # From the memory itself: a mode such as that of fake tensors would run a comparison its own way.
        states = (self._cpu, *self._cuda)
        return [ctypes.string_at(state.data_ptr(), state.numel()) for state in states]

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def foreign_random_state() -> tuple[object, Callable[[], None]]:
    """Return the state of Python's and NumPy's global generators, and a function that restores it.

    Draws from these leave no trace in a graph, so a trace that moved them cannot be faithful.
    """
    python = random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    # The older tuple takes twice as long, and is of one kind of generator alone.
    numpy = numpy_random.get_state(legacy=False) if numpy_random is not None else None

    def restore() -> None:
        random.setstate(python)
        if numpy_random is not None:
            numpy_random.set_state(numpy)

    return (hash(python), _plain(numpy)), restore


def _plain(state: Any) -> object:
    """Return a state of NumPy's, dicts of numbers and arrays, as what can be compared."""
    if isinstance(state, dict):
        return [_plain(value) for value in state.values()]
    return state.tobytes() if hasattr(state, "tobytes") else state
