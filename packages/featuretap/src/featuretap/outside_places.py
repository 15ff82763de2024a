"""Where forwards find what lies outside of the modules: globals, classes, closures, default arguments.

Looked at is only what the code of a forward, and of what it calls by name, mentions: the rest of a
process changes for reasons of its own.
"""

from __future__ import annotations

import dis
import functools
import os
import types
from collections import ChainMap, UserDict, UserList
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from weakref import ProxyTypes, WeakKeyDictionary, WeakSet, WeakValueDictionary

import torch
from torch import nn

from .containers import CONTAINERS, items_of
from .held import DEPTH, is_opened
from .looking import attributes_of, has_attributes, is_a
from .reading import (
    Forward,
    codes_in,
    functions_of,
    instructions_of,
    is_users,
    is_users_module,
)

__all__ = [
    "HOLD_ITEMS",
    "MISSING",
    "STATELESS",
    "Absent",
    "Owner",
    "Place",
    "Root",
    "all_places",
    "places_at",
    "roots_of",
]

MISSING = object()
_NONE: frozenset[str] = frozenset()
# What holds no state, where it is not exchanged for something else.
STATELESS = (
    *(bool, int, float, complex, str, bytes, type(None), type, property, classmethod, staticmethod),
    *(types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(torch.Tensor, nn.Module, torch.dtype, torch.device, *ProxyTypes),
)
HOLD_ITEMS = (*CONTAINERS, tuple)
# Containers that keep what they hold in an attribute, which no code names.
_WRITTEN_IN_PYTHON = (UserDict, UserList, ChainMap, WeakKeyDictionary, WeakValueDictionary, WeakSet)
_SMALL = 1000


class Place(NamedTuple):
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


class Owner(NamedTuple):
    """A class, a Python module or a function, whose attributes code may find or set.

    Attributes:
        label: what to call an attribute in a message, with a place for its name.
        known: what it has now.
        write: sets an attribute, or deletes it.
        names: what the code mentions of it.
        set_names: those that the code may set.

    """

    label: str
    known: Mapping[str, Any]
    write: Callable[[str, Any], object]
    names: frozenset[str]
    set_names: frozenset[str]

    def place(self, name: str) -> Place:
        """Return the place of one attribute."""
        read = partial(self.known.get, name, MISSING)
        is_set = name in self.set_names
        return Place(name, self.label.format(name), read, partial(self.write, name), is_set)

    def places(self) -> Iterator[Place | Absent]:
        """Yield where the attributes lie that are there, and which are not."""
        # Most functions have no attributes.
        present = (self.names | self.set_names) & self.known.keys() if self.known else _NONE
        yield from map(self.place, present)
        if not self.set_names <= present:
            yield Absent(self, self.set_names - present)


class Absent(NamedTuple):
    """Attributes that code may set and that are not there: many, so they are looked at together."""

    owner: Owner
    names: frozenset[str]

    def filled(self) -> Iterator[Place]:
        """Yield where there is something now."""
        yield from map(self.owner.place, self.names & self.owner.known.keys())


# Where a look begins.
Root: TypeAlias = Place | Owner


def all_places(forward: Forward) -> Iterator[Place | Absent]:
    """Yield each place that the code of ``forward`` comes to, and what is inside of what lies there."""
    for root in roots_of(forward):
        yield from places_at(root, forward)


def places_at(root: Root, forward: Forward) -> Iterator[Place | Absent]:
    """Yield the places of one root, and what is inside of what lies there."""
    mentions = _mentions(forward)
    for place in root.places() if isinstance(root, Owner) else (root,):
        if isinstance(place, Absent):
            yield place
            continue
        for inside in (place, *_inside(place, mentions)):
            yield inside
            if isinstance(inside, Place):
                yield from _in_a_container(inside.read(), inside.label, DEPTH)


def _inside(place: Place, mentions: _Mentions) -> Iterator[Place | Absent]:
    value = place.read()
    if is_a(value, type):
        if is_users(value):
            yield from _in_a_class(value, mentions, value.__name__).places()
    elif is_a(value, types.ModuleType):
        if is_users_module(value.__name__):
            yield from _in_a_class(value, mentions, value.__name__).places()
    elif _is_looked_into(value):
        yield from _in_an_object(value, mentions, place.label)


def _is_looked_into(value: Any) -> bool:
    if is_a(value, STATELESS) or not has_attributes(value):
        return False
    return is_opened(value) or is_users(type(value))


def _in_a_container(value: Any, label: str, depth: int) -> Iterator[Place]:
    """Yield the containers among what a container holds, or a ``functools.partial``."""
    if is_a(value, functools.partial):
        value = (*value.args, *value.keywords.values())
    if depth and is_a(value, HOLD_ITEMS):
        for item in items_of(value):
            if is_a(item, CONTAINERS):
                yield Place("", label, partial(_itself, item), _itself, is_set=False)
            yield from _in_a_container(item, label, depth - 1)


# -- what code mentions ---------------------------------------------------------------------


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
def roots_of(forward: Forward) -> tuple[Root, ...]:
    """Return where the code of ``forward`` begins: variables, classes, functions."""
    mentions = _mentions(forward)
    found: list[Root] = []
    if "environ" in mentions.attributes:
        environment = partial(_itself, os.environ)
        label = "the environment of the process"
        found.append(Place("environ", label, environment, _itself, is_set=False))
    if forward.kind.__module__.startswith("torch."):
        return tuple(found)
    for base in forward.kind.__mro__:
        if not base.__module__.startswith(("torch.", "builtins")):
            found.append(_in_a_class(base, mentions, "its class"))
    for function in functions_of(forward):
        found += _of_variables(function)
        found += _of_defaults(function)
        write = partial(_write_in_dict, vars(function))
        found.append(Owner(f"{function.__name__}.{{}}", vars(function), write, *mentions))
    return tuple(found)


def _in_a_class(owner: Any, mentions: _Mentions, label: str) -> Owner:
    """Return what the code may find, or set, in a class or a Python module."""
    return Owner(f".{{}} of {label}", vars(owner), partial(_write_in_class, owner), *mentions)


def _in_an_object(owner: Any, mentions: _Mentions, label: str) -> Iterator[Place]:
    """Yield what an object keeps; of one that is not the user's, under the names that the code mentions."""
    mentioned = mentions.attributes | mentions.set_attributes
    is_own = is_users(type(owner))
    for name, value in list(attributes_of(owner).items()):
        is_named = name in mentioned or is_a(owner, _WRITTEN_IN_PYTHON)
        if not is_named and not (is_own and _is_small(value)):
            continue
        # What a property of the user's sets, its caller does not name.
        is_set = is_own or name in mentions.set_attributes
        yield _in_dict(attributes_of(owner), name, f"{label}.{name}", is_set)


def _is_small(value: Any) -> bool:
    """Say whether it costs little to look through ``value`` in each call."""
    return not is_a(value, HOLD_ITEMS) or len(items_of(value)) <= _SMALL


def _of_variables(function: types.FunctionType) -> Iterator[Place]:
    """Yield the globals, and the variables of the scopes around it, that a function mentions."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    code = [i for part in codes_in(function.__code__) for i in dis.get_instructions(part)]
    stored = {i.argval for i in code if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    for name in dict.fromkeys(i.argval for i in code if "GLOBAL" in i.opname):
        yield _in_dict(function.__globals__, name, f"the global {name}", name in stored)
    for name, cell in cells.items():
        read, write = partial(_cell_content, cell), partial(_fill_cell, cell)
        yield Place(name, f"the variable {name} around it", read, write, name in stored)


def _of_defaults(function: types.FunctionType) -> Iterator[Place]:
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    for name, value in {**named, **(function.__kwdefaults__ or {})}.items():
        if is_a(value, CONTAINERS):
            label = f"the default of its argument {name}"
            yield Place(name, label, partial(_itself, value), _itself, is_set=False)


# -- reading and writing -------------------------------------------------------------------


def _in_dict(owner: dict[str, Any], name: str, label: str, is_set: bool) -> Place:
    read, write = partial(owner.get, name, MISSING), partial(_write_in_dict, owner, name)
    return Place(name, label, read, write, is_set)


def _write_in_dict(owner: dict[str, Any], name: str, value: Any) -> None:
    if value is MISSING:
        owner.pop(name, None)
    else:
        owner[name] = value


def _write_in_class(owner: Any, name: str, value: Any) -> None:
    if value is MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _fill_cell(cell: types.CellType, value: Any) -> None:
    if value is MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = value


def _itself(value: Any) -> Any:
    return value
