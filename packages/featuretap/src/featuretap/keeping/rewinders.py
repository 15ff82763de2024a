"""What moves when it is used, as it was: random generators, arrays, iterators, caches, slots."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
import warnings
from array import array
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ..inspecting.looking import is_a
from ..inspecting.reading import CachedFunction
from ..inspecting.slots import slot_names, slots_of
from .held import SIMPLE

__all__ = ["Rewinder", "copied_iterator", "iterator_state", "rewinder"]

_R = TypeVar("_R")


class Rewinder(NamedTuple):
    """Something that moves when it is used, as it was.

    Attributes:
        name: what to call it in a message.
        state: returns its state of now, to be compared.
        kept: its state when this was made.
        put: takes it back to a state.

    """

    name: str
    state: Callable[[], Any]
    kept: Any
    put: Callable[[Any], object]

    def moved(self) -> bool:
        """Say whether it was used since."""
        return not _equal(self.state(), self.kept)

    def rewind(self) -> None:
        """Take it back to where it was."""
        if self.moved():
            self.put(self.kept)


def rewinder(value: Any) -> Rewinder | None:
    """Return how to compare and put back what moves when it is used; ``None`` for anything else.

    Random generators, arrays, bytes, objects that have slots, and what ``functools.cache`` made: that
    is emptied if it holds more than before.
    """
    if is_a(value, torch.Generator):
        return _rewinder("a torch.Generator of its own", value.get_state, value.set_state)
    if is_a(value, random.Random) and not is_a(value, random.SystemRandom):
        return _rewinder("random numbers of its own", value.getstate, value.setstate)
    if is_a(value, bytearray):
        put = partial(bytearray.__setitem__, value, slice(None))
        return _rewinder("bytes that it keeps", partial(bytes, value), put)
    if is_a(value, array):
        return _rewinder("an array that it keeps", value.tobytes, partial(_fill_array, value))
    if value is os.environ:
        return _rewinder("the environment of the process", partial(dict, value), _set_environment)
    if is_a(value, ContextVar):
        with contextlib.suppress(LookupError):  # it was never set: there is no way back to that
            return _rewinder("a context variable", value.get, value.set)
        return None
    if is_a(value, CachedFunction):
        about = f"what {getattr(value, '__name__', 'a function')} has cached"
        return _rewinder(about, lambda: value.cache_info()[1:], lambda _: value.cache_clear())
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and is_a(value, numpy.ndarray):
        return _array(value)
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None and (found := _numpy_generator(numpy_random, value)) is not None:
        return found
    if not is_a(value, (nn.Module, type)) and (slots := slot_names(value)):
        return _slotted(value, slots)
    return None


def copied_iterator(value: Iterator[Any]) -> Iterator[Any] | None:
    """Return an iterator that yields what ``value`` will yield; ``None`` if there can be none."""
    return _if_possible(_rebuilt, value)


def iterator_state(value: Iterator[Any]) -> Any:
    """Return how far an iterator is, to be compared; ``None`` if it cannot be looked at."""
    return _if_possible(_state_of, value)


def _if_possible(look: Callable[[Iterator[Any]], _R], value: Iterator[Any]) -> _R | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # itertools, since Python 3.12
            return look(value)
    except (TypeError, AttributeError):
        return None


def _state_of(value: Any) -> Any:
    if isinstance(value, Iterator):
        if hasattr(value, "__dict__"):
            return _state_of(tuple(vars(value).values()))
        reduced: Any = value.__reduce__()
        make, *parts = reduced
        return (make.__name__, *map(_state_of, parts))
    if isinstance(value, tuple):
        return tuple(map(_state_of, value))
    if isinstance(value, list):  # of some, what is left is made anew each time
        return len(value)
    return value if type(value) in SIMPLE else f"{type(value)} {id(value)}"


def _rebuilt(value: Iterator[Any]) -> Iterator[Any]:
    """Copy an iterator, and those that it draws from, which ``copy.copy`` would share."""
    if hasattr(value, "__dict__"):  # of a class of the user's
        return copy.copy(value)
    parts: Any = value.__reduce__()
    if isinstance(parts, str):
        raise TypeError(f"{parts} is there once")
    make, arguments, state = (*parts, None)[:3]
    new: Iterator[Any] = make(*(_rebuilt(a) if isinstance(a, Iterator) else a for a in arguments))
    if state is not None:
        new.__setstate__(_copied_state(state))  # type: ignore[attr-defined]
    return new


def _copied_state(state: Any) -> Any:
    """Copy what an iterator keeps: others, and what it has seen."""
    if isinstance(state, (tuple, list)):
        return type(state)(map(_copied_state, state))
    return _rebuilt(state) if isinstance(state, Iterator) else state


def _rewinder(name: str, state: Callable[[], Any], put: Callable[[Any], object]) -> Rewinder:
    return Rewinder(name, state, state(), put)


def _numpy_generator(numpy_random: Any, value: Any) -> Rewinder | None:
    name = "random numbers of NumPy's of its own"
    if is_a(value, numpy_random.RandomState):
        return _rewinder(name, lambda: value.get_state(legacy=False), value.set_state)
    if is_a(value, numpy_random.Generator):
        value = value.bit_generator
    if is_a(value, numpy_random.BitGenerator):
        bits = value
        return _rewinder(name, lambda: bits.state, lambda kept: setattr(bits, "state", kept))
    return None


def _array(value: Any) -> Rewinder | None:
    if not value.flags.writeable:
        return None
    return _rewinder(
        "an array that it keeps", value.copy, lambda kept: value.__setitem__(..., kept)
    )


def _set_environment(kept: dict[str, str]) -> None:
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update({n: value for n, value in kept.items() if os.environ.get(n) != value})


def _fill_array(value: array[Any], kept: bytes) -> None:
    del value[:]
    value.frombytes(kept)


def _slotted(value: Any, slots: tuple[str, ...]) -> Rewinder:
    def state() -> dict[str, Any]:
        return slots_of(value)

    def put(kept: dict[str, Any]) -> None:
        for name in slots:
            if name in kept:
                setattr(value, name, kept[name])
            elif hasattr(value, name):
                delattr(value, name)

    return _rewinder("an object that it keeps", state, put)


def _equal(a: Any, b: Any) -> bool:
    """Compare two states, which may hold tensors and arrays; an object is equal to itself alone."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == torch.uint8 and torch.equal(a, b)
    if hasattr(a, "tobytes"):
        return bool(a.dtype != object and a.tobytes() == b.tobytes())
    return type(a) in SIMPLE and bool(a == b)
