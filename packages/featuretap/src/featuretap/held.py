"""What modules hold besides their registries: tensors and random generators, in whatever containers."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from . import containers
from .reading import CachedFunction

__all__ = [
    "Rewinder",
    "attributes",
    "copied_iterator",
    "is_opened",
    "items_of",
    "kept_tensors",
    "rewinder",
    "rewinders_in",
    "tensors_in",
]

# How deep containers and objects are looked into: a helper object with a cache in a dict.
_DEPTH = 3
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, nn.Parameter})
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_REGISTRIES = frozenset(
    name for name in vars(nn.Module()) if name.startswith("_") and name != "_buffers"
)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds, without parameters, submodules, hooks and plain numbers."""
    for name, value in list(vars(module).items()):
        if type(value) not in _SIMPLE and name not in _REGISTRIES:
            yield name, value


def is_opened(value: Any) -> bool:
    """Say whether ``value`` is a container, or an object of the user, that may hold something."""
    if type(value) in _SIMPLE or isinstance(value, (nn.Module, torch.Tensor, type)):
        return False
    if type(value) is dict and "__builtins__" in value:
        return False  # the globals of some code
    return isinstance(value, _CONTAINERS) or (hasattr(value, "__dict__") and not callable(value))


def items_of(value: Any) -> list[Any]:
    """Return what a container or an object holds now, also while another thread changes it."""
    return containers.items_of(value if isinstance(value, _CONTAINERS) else vars(value))


def tensors_in(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that a module holds and that are no parameters: buffers, caches, states."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.buffers()
        return
    for _, value in attributes(module):
        yield from _tensors(value, _DEPTH)


def kept_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield those of them that are no buffers."""
    if not isinstance(module, torch.jit.ScriptModule):
        buffers = set(map(id, module._buffers.values()))
        yield from (tensor for tensor in tensors_in(module) if id(tensor) not in buffers)


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif depth and is_opened(value):
        for item in items_of(value):
            yield from _tensors(item, depth - 1)


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
    if isinstance(value, torch.Generator):
        return _rewinder("a torch.Generator of its own", value.get_state, value.set_state)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return _rewinder("random numbers of its own", value.getstate, value.setstate)
    if isinstance(value, bytearray):
        put = partial(bytearray.__setitem__, value, slice(None))
        return _rewinder("bytes that it keeps", partial(bytes, value), put)
    if isinstance(value, array):
        return _rewinder("an array that it keeps", value.tobytes, partial(_fill_array, value))
    if value is os.environ:
        return _rewinder("the environment of the process", partial(dict, value), _set_environment)
    if isinstance(value, ContextVar):
        with contextlib.suppress(LookupError):  # it was never set: there is no way back to that
            return _rewinder("a context variable", value.get, value.set)
        return None
    if isinstance(value, CachedFunction):
        about = f"what {value.__name__} has cached"
        return _rewinder(about, lambda: value.cache_info()[1:], lambda _: value.cache_clear())
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _array(value)
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None and (found := _numpy_generator(numpy_random, value)) is not None:
        return found
    slots = [name for kind in type(value).__mro__ for name in _slots_of(kind)]
    if slots and not isinstance(value, (nn.Module, type)) and not hasattr(value, "__dict__"):
        return _slotted(value, slots)
    return None


def rewinders_in(value: Any) -> Iterator[Rewinder]:
    """Yield how to put back what moves in ``value``, tuples, lists and dicts included."""
    if isinstance(value, (tuple, list, dict)):
        for item in list(value.values() if isinstance(value, dict) else value):
            yield from rewinders_in(item)
    elif (found := rewinder(value)) is not None:
        yield found


def copied_iterator(value: Iterator[Any]) -> Iterator[Any] | None:
    """Return an iterator that yields what ``value`` will yield; ``None`` if there can be none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # itertools, since Python 3.12
            return copy.copy(value)
    except TypeError:
        return None


def _rewinder(name: str, state: Callable[[], Any], put: Callable[[Any], object]) -> Rewinder:
    return Rewinder(name, state, state(), put)


def _numpy_generator(numpy_random: Any, value: Any) -> Rewinder | None:
    name = "random numbers of NumPy's of its own"
    if isinstance(value, numpy_random.RandomState):
        return _rewinder(name, lambda: value.get_state(legacy=False), value.set_state)
    if isinstance(value, numpy_random.Generator):
        value = value.bit_generator
    if isinstance(value, numpy_random.BitGenerator):
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


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ()) if kind.__module__ != "builtins" else ()
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _slotted(value: Any, slots: list[str]) -> Rewinder:
    def state() -> dict[str, Any]:
        return {name: getattr(value, name) for name in slots if hasattr(value, name)}

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
    return type(a) in _SIMPLE and bool(a == b)
