"""What modules hold besides their registries: tensors and random generators, in whatever containers."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import random
import sys
import warnings
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ..inspecting import containers
from ..inspecting.looking import attributes_of, has_attributes, is_a
from ..inspecting.reading import CachedFunction

__all__ = [
    "DEPTH",
    "NOT_OPENED",
    "Rewinder",
    "attributes",
    "copied_iterator",
    "has_slots",
    "is_opened",
    "items_of",
    "iterator_state",
    "kept_tensors",
    "rewinder",
    "slots_of",
    "tensors_in",
]

_R = TypeVar("_R")
# How deep containers and objects are looked into; what refers to itself is looked into once.
DEPTH = 10
# Loggers lead to all of the process, and note which levels are on.
NOT_OPENED = (
    *(nn.Module, torch.Tensor, type, logging.Filterer, logging.Manager),
    *weakref.ProxyTypes,  # what is behind one belongs to others
)
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
    if type(value) in _SIMPLE or is_a(value, NOT_OPENED):
        return False
    if type(value) is dict and "__builtins__" in value:
        return False  # the globals of some code
    if is_a(value, _CONTAINERS):
        return True
    return not callable(value) and (has_attributes(value) or has_slots(value))


def items_of(value: Any) -> list[Any]:
    """Return what a container or an object holds now, also while another thread changes it."""
    if is_a(value, _CONTAINERS):
        return containers.items_of(value)
    own = attributes_of(value) if has_attributes(value) else {}
    return [*containers.items_of(own), *slots_of(value).values()]


def has_slots(value: Any) -> bool:
    """Say whether the class of an object, or one it is made of, has slots."""
    return bool(_slots_of(value))


def slots_of(value: Any) -> dict[str, Any]:
    """Return what an object holds in slots."""
    names = _slots_of(value)
    return {name: getattr(value, name) for name in names if hasattr(value, name)} if names else {}


def tensors_in(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that a module holds and that are no parameters: buffers, caches, states."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.buffers()
        return
    seen: set[int] = set()
    for _, value in attributes(module):
        yield from _tensors(value, DEPTH, seen)


def kept_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield those of them that are no buffers."""
    if not isinstance(module, torch.jit.ScriptModule):
        buffers = set(map(id, module._buffers.values()))
        yield from (tensor for tensor in tensors_in(module) if id(tensor) not in buffers)


def _tensors(value: Any, depth: int, seen: set[int]) -> Iterator[torch.Tensor]:
    if is_a(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif depth and id(value) not in seen and is_opened(value):
        seen.add(id(value))
        for item in items_of(value):
            yield from _tensors(item, depth - 1, seen)


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
        about = f"what {value.__name__} has cached"
        return _rewinder(about, lambda: value.cache_info()[1:], lambda _: value.cache_clear())
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and is_a(value, numpy.ndarray):
        return _array(value)
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None and (found := _numpy_generator(numpy_random, value)) is not None:
        return found
    if not is_a(value, (nn.Module, type)) and (slots := _slots_of(value)):
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
    return value if type(value) in _SIMPLE else f"{type(value)} {id(value)}"


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


def _slots_of(value: Any) -> tuple[str, ...]:
    kind: Any = type(value)
    return _slots_of_class(kind)


@functools.lru_cache(maxsize=4096)
def _slots_of_class(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ()) if base.__module__ != "builtins" else ()
        # As Python does with names that begin with two underscores.
        hide = f"_{base.__name__.lstrip('_')}"
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        found += [hide + n if n.startswith("__") and not n.endswith("__") else n for n in names]
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


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
    return type(a) in _SIMPLE and bool(a == b)
