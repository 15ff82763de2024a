"""What forwards keep outside of the modules: in globals, classes, closures, default arguments.

Looked at is only what the code of a forward, and of what it calls by name, mentions: the rest of a
process changes for reasons of its own.
"""

from __future__ import annotations

import dis
import functools
import os
import types
from collections import ChainMap, UserDict, UserList
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import nn

from .containers import CONTAINERS, copied, is_changed, is_same, items_of, restore_container
from .held import DEPTH, Rewinder, copied_iterator, is_opened, rewinder
from .reading import (
    Forward,
    codes_in,
    functions_of,
    instructions_of,
    is_users,
    is_users_module,
)
from .state import moved_attribute, moved_content
from .trace_left import is_plain_cache, may_write

__all__ = ["Outside", "tensors_outside"]

_MISSING = object()
# What holds no state, where it is not exchanged for something else.
_STATELESS = (
    *(bool, int, float, complex, str, bytes, type(None), type, property, classmethod, staticmethod),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(torch.Tensor, nn.Module, torch.dtype, torch.device),
)
# Containers that keep what they hold in an attribute, which no code names.
_WRITTEN_IN_PYTHON = (UserDict, UserList, ChainMap, WeakKeyDictionary, WeakValueDictionary, WeakSet)
_HOLD_ITEMS = (*CONTAINERS, tuple)
_SMALL = 1000


class _Place(NamedTuple):
    """Where something lies that a forward mentions.

    Attributes:
        name: what the code calls it.
        label: what to call it in a message.
        read: returns what lies there now.
        write: puts something there.
        is_set: whether the code may put something else there.

    """

    name: str
    label: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    is_set: bool


class Outside:
    """What some forwards find outside of their modules, as it is when this object is made."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        found = {forward: list(_held_by(forward)) for forward in forwards}
        self._held = {forward: held for forward, held in found.items() if held}

    def __bool__(self) -> bool:
        return bool(self._held)

    def moved(self, forward: Forward) -> str:
        """Name what ``forward`` changed and its next call would read; ``""`` if there is nothing."""
        held = self._held.get(forward, ())
        return next((one.place.label for one in held if one.moved(forward)), "")

    def changes(self) -> Iterator[Any]:
        """Yield keys for what is not as it was."""
        for held in self._held.values():
            yield from (one.place.label for one in held if one.is_changed)

    def restore(self) -> None:
        """Put everything back."""
        for held in self._held.values():
            for one in held:
                one.restore()


class _Held:
    """One place, and what lay there."""

    def __init__(self, place: _Place, value: Any) -> None:
        self.place = place
        self._value = value
        self._content: Any = None
        self._copy: Iterator[Any] | None = None
        self._rewinder: Rewinder | None = None
        # Most places are such: code may set them, and they hold nothing.
        if value is _MISSING or isinstance(value, _STATELESS):
            return
        if isinstance(value, CONTAINERS):
            self._content = copied(value)
        elif isinstance(value, Iterator):
            self._copy = copied_iterator(value)
        else:
            self._rewinder = rewinder(value)

    @property
    def is_changed(self) -> bool:
        """Whether another object lies there, or it holds something else."""
        if not is_same(self.place.read(), self._value):
            return True
        if self._content is not None:
            return is_changed(self._value, self._content)
        return self._rewinder is not None and self._rewinder.moved()

    def moved(self, forward: Forward) -> bool:
        place, value = self.place, self._value
        now = place.read()
        if now is not value:
            before = None if value is _MISSING else value
            return moved_attribute(forward, place.name, before, now)
        if self._content is not None:
            return moved_content(forward, place.name, value, self._content)
        # Most iterators cannot be looked at.
        return isinstance(value, Iterator) or (
            self._rewinder is not None and self._rewinder.moved() and not is_plain_cache(value)
        )

    def restore(self) -> None:
        place, value = self.place, self._value
        if self._copy is not None:
            place.write(copied_iterator(self._copy))
        elif place.is_set and place.read() is not value:
            place.write(value)
        if self._content is not None:
            restore_container(value, self._content)
        if self._rewinder is not None:
            self._rewinder.rewind()


def tensors_outside(forwards: Iterable[Forward]) -> Iterator[torch.Tensor]:
    """Yield the tensors that code of ``forwards`` finds outside of the modules, and may write."""
    for forward in filter(may_write, forwards):
        for place in _all_places(forward):
            yield from _tensors_in(place.read(), DEPTH)


def _tensors_in(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, _HOLD_ITEMS):
        for item in items_of(value):
            yield from _tensors_in(item, depth - 1)


def _held_by(forward: Forward) -> Iterator[_Held]:
    for place in _all_places(forward):
        value = place.read()
        if _may_move(place, value):
            yield _Held(place, value)


def _all_places(forward: Forward) -> Iterator[_Place]:
    """Yield each place that the code comes to, and what is inside of what lies there."""
    mentions = _mentions(forward)
    if "environ" in mentions.attributes:
        environment = partial(_itself, os.environ)
        yield _Place(
            "environ", "the environment of the process", environment, _itself, is_set=False
        )
    for place in _places(forward):
        value = place.read()
        inside = [place]
        if isinstance(value, type):
            inside += _in_a_class(value, mentions, value.__name__) if is_users(value) else ()
        elif isinstance(value, types.ModuleType):
            if is_users_module(value.__name__):
                inside += _in_a_class(value, mentions, value.__name__)
        elif _is_looked_into(value):
            inside += _in_an_object(value, mentions, place.label)
        for found in inside:
            yield found
            yield from _in_a_container(found.read(), found.label, DEPTH)


def _is_looked_into(value: Any) -> bool:
    if isinstance(value, _STATELESS) or not hasattr(value, "__dict__"):
        return False
    return is_opened(value) or is_users(type(value))


def _in_a_container(value: Any, label: str, depth: int) -> Iterator[_Place]:
    """Yield the containers among what a container holds, or a ``functools.partial``."""
    if isinstance(value, functools.partial):
        value = (*value.args, *value.keywords.values())
    if depth and isinstance(value, _HOLD_ITEMS):
        for item in items_of(value):
            if isinstance(item, CONTAINERS):
                yield _Place("", label, partial(_itself, item), _itself, is_set=False)
            yield from _in_a_container(item, label, depth - 1)


def _may_move(place: _Place, value: Any) -> bool:
    return place.is_set or not (value is _MISSING or isinstance(value, _STATELESS))


# -- what code mentions ------------------------------------------------------------------------------


class _Mentions(NamedTuple):
    attributes: frozenset[str]
    set_attributes: frozenset[str]


@functools.lru_cache(maxsize=1024)
def _mentions(forward: Forward) -> _Mentions:
    named: set[str] = set()
    stored: set[str] = set()
    for instruction in instructions_of(forward):
        name, operation = instruction.argval, instruction.opname
        if not isinstance(name, str):
            continue
        if operation in ("STORE_ATTR", "DELETE_ATTR"):
            stored.add(name)
        elif "ATTR" in operation or "METHOD" in operation:
            named.add(name)
        elif operation.startswith("LOAD_CONST") and name.isidentifier():
            # ``setattr(type(self), "calls", ...)``
            named.add(name)
            stored.add(name)
    return _Mentions(frozenset(named), frozenset(stored))


@functools.lru_cache(maxsize=1024)
def _places(forward: Forward) -> tuple[_Place, ...]:
    if forward.kind.__module__.startswith("torch."):
        return ()
    mentions = _mentions(forward)
    places: list[_Place] = []
    for base in forward.kind.__mro__:
        if not base.__module__.startswith(("torch.", "builtins")):
            places += _in_a_class(base, mentions, "its class")
    for function in functions_of(forward):
        places += _of_variables(function)
        places += _of_defaults(function)
        own = mentions.attributes & vars(function).keys()
        for name in own | mentions.set_attributes:
            label = f"{function.__name__}.{name}"
            places.append(_in_dict(vars(function), name, label, name in mentions.set_attributes))
    return tuple(places)


def _in_a_class(owner: Any, mentions: _Mentions, label: str) -> Iterator[_Place]:
    """Yield what the code may find, or set, in a class or a Python module."""
    known, write = vars(owner), partial(_write_in_class, owner)
    for name in (mentions.attributes & known.keys()) | mentions.set_attributes:
        is_set = name in mentions.set_attributes
        read = partial(known.get, name, _MISSING)
        yield _Place(name, f".{name} of {label}", read, partial(write, name), is_set)


def _in_an_object(owner: Any, mentions: _Mentions, label: str) -> Iterator[_Place]:
    """Yield what an object keeps; of one that is not the user's, under the names that the code mentions."""
    mentioned = mentions.attributes | mentions.set_attributes
    is_own = is_users(type(owner))
    for name, value in list(vars(owner).items()):
        is_named = name in mentioned or isinstance(owner, _WRITTEN_IN_PYTHON)
        if not is_named and not (is_own and _is_small(value)):
            continue
        # What a property of the user's sets, its caller does not name.
        is_set = is_own or name in mentions.set_attributes
        yield _in_dict(vars(owner), name, f"{label}.{name}", is_set)


def _is_small(value: Any) -> bool:
    """Say whether it costs little to look through ``value`` in each call."""
    return not isinstance(value, _HOLD_ITEMS) or len(items_of(value)) <= _SMALL


def _of_variables(function: types.FunctionType) -> Iterator[_Place]:
    """Yield the globals, and the variables of the scopes around it, that a function mentions."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    code = [i for part in codes_in(function.__code__) for i in dis.get_instructions(part)]
    stored = {i.argval for i in code if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    for name in dict.fromkeys(i.argval for i in code if "GLOBAL" in i.opname):
        yield _in_dict(function.__globals__, name, f"the global {name}", name in stored)
    for name, cell in cells.items():
        read, write = partial(_cell_content, cell), partial(_fill_cell, cell)
        yield _Place(name, f"the variable {name} around it", read, write, name in stored)


def _of_defaults(function: types.FunctionType) -> Iterator[_Place]:
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    for name, value in {**named, **(function.__kwdefaults__ or {})}.items():
        if isinstance(value, CONTAINERS):
            label = f"the default of its argument {name}"
            yield _Place(name, label, partial(_itself, value), _itself, is_set=False)


# -- places ------------------------------------------------------------------------------------------


def _in_dict(owner: dict[str, Any], name: str, label: str, is_set: bool) -> _Place:
    read, write = partial(owner.get, name, _MISSING), partial(_write_in_dict, owner, name)
    return _Place(name, label, read, write, is_set)


def _write_in_dict(owner: dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        owner.pop(name, None)
    else:
        owner[name] = value


def _write_in_class(owner: Any, name: str, value: Any) -> None:
    if value is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _fill_cell(cell: types.CellType, value: Any) -> None:
    if value is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = value


def _itself(value: Any) -> Any:
    return value
