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

from ..inspecting.containers import CONTAINERS, items_of
from ..inspecting.looking import attributes_of, has_attributes, is_a
from ..inspecting.reading import Forward, codes_in, functions_of, instructions_of
from ..inspecting.remembering import by_forward
from ..inspecting.whose import is_our_module, is_users, is_users_module
from .held import DEPTH, is_opened

__all__ = [
    "HOLD_ITEMS",
    "MISSING",
    "STATELESS",
    "Owner",
    "Place",
    "Root",
    "owner_at",
    "places_at",
    "roots_of",
    "write_attribute",
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

    def places(self) -> Iterator[Place]:
        """Yield where the attributes lie that are there."""
        wanted = self.names | self.set_names if self.names else self.set_names
        if not self.known.keys().isdisjoint(wanted):
            yield from map(self.place, wanted & self.known.keys())

    @property
    def has_none(self) -> bool:
        """Whether nothing is looked at but what the code may set, and none of that is there."""
        return not self.names and self.known.keys().isdisjoint(self.set_names)

    def absent(self) -> Iterator[Owner]:
        """Yield what has the attributes that code may set and that are not there.

        They are many, so they are looked at together.
        """
        absent = self.set_names
        if not self.known.keys().isdisjoint(absent):
            absent -= self.known.keys()
        if absent:
            is_all = absent is self.set_names and not self.names
            yield self if is_all else self._replace(names=_NONE, set_names=absent)


# Where a look begins.
Root: TypeAlias = Place | Owner


def places_at(root: Root, forward: Forward) -> Iterator[Root]:
    """Yield the places of one root, and what is inside of what lies there.

    An owner stands for those of its attributes that are not there.
    """
    if isinstance(root, Owner):
        for place in root.places():
            yield from _from(place, forward)
        yield from root.absent()
    else:
        yield from _from(root, forward)


def owner_at(place: Place, forward: Forward) -> Owner | None:
    """Return the class or Python module of the user's that lies at a place, if one does."""
    value = place.read()
    if is_a(value, type):
        is_looked_at = is_users(value)
    else:
        is_looked_at = is_a(value, types.ModuleType) and is_users_module(value.__name__)
    return _in_a_class(value, _mentions(forward), value.__name__) if is_looked_at else None


def _from(place: Place, forward: Forward) -> Iterator[Root]:
    for inside in (place, *_inside(place, forward)):
        yield inside
        if isinstance(inside, Place):
            yield from _in_a_container(inside.read(), inside.label, DEPTH)


def _inside(place: Place, forward: Forward) -> Iterator[Root]:
    value = place.read()
    owner = owner_at(place, forward)
    if owner is not None:
        yield from owner.places()
        yield from owner.absent()
    elif _is_looked_into(value):
        yield from _in_an_object(value, _mentions(forward), place.label)
        yield from _not_yet_in(value, _mentions(forward), place.label)


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


@by_forward
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
    # What torch notes on a function that it leaves uncompiled is the same in each call.
    stored.discard("__dynamo_disable")
    return _Mentions(frozenset(named), frozenset(stored))


@by_forward
def roots_of(forward: Forward) -> tuple[Root, ...]:
    """Return where the code of ``forward`` begins: variables, classes, functions."""
    mentions = _mentions(forward)
    found: list[Root] = []
    if "environ" in mentions.attributes:
        environment = partial(_itself, os.environ)
        label = "the environment of the process"
        found.append(Place("environ", label, environment, _itself, is_set=False))
    if is_our_module(forward.kind.__module__):
        return tuple(found)
    for base in forward.kind.__mro__:
        if not base.__module__.startswith(("torch.", "builtins")):
            found.append(_in_a_class(base, mentions, "its class"))
    variables: dict[tuple[int, str], Place] = {}
    for function in functions_of(forward):
        for where, place in _of_variables(function):
            if place.is_set or (where, place.name) not in variables:
                variables[where, place.name] = place
        found += _of_defaults(function)
        write = partial(_write_in_dict, vars(function))
        found.append(Owner(f"{function.__name__}.{{}}", vars(function), write, *mentions))
    return (*found, *variables.values())


def _in_a_class(owner: Any, mentions: _Mentions, label: str) -> Owner:
    """Return what the code may find, or set, in a class or a Python module."""
    return Owner(f".{{}} of {label}", vars(owner), partial(write_attribute, owner), *mentions)


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


def _not_yet_in(owner: Any, mentions: _Mentions, label: str) -> Iterator[Owner]:
    """Yield the attributes that the code sets and that the object has of its class until then."""
    attributes, kinds = attributes_of(owner), type(owner).__mro__
    absent = mentions.set_attributes - attributes.keys()
    absent = frozenset(name for name in absent if any(name in vars(kind) for kind in kinds))
    if absent:
        write = partial(_write_in_dict, attributes)
        yield Owner(f"{label}.{{}}", attributes, write, _NONE, absent)


def _is_small(value: Any) -> bool:
    """Say whether it costs little to look through ``value`` in each call."""
    return not is_a(value, HOLD_ITEMS) or len(items_of(value)) <= _SMALL


def _of_variables(function: types.FunctionType) -> Iterator[tuple[int, Place]]:
    """Yield the globals, and the variables of the scopes around it, that a function mentions.

    Each comes with the identity of where it lies, which functions share.
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    code = [i for part in codes_in(function.__code__) for i in dis.get_instructions(part)]
    stored = {i.argval for i in code if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    for name in dict.fromkeys(i.argval for i in code if "GLOBAL" in i.opname):
        place = _in_dict(function.__globals__, name, f"the global {name}", name in stored)
        yield id(function.__globals__), place
    for name, cell in cells.items():
        read, write = partial(_cell_content, cell), partial(_fill_cell, cell)
        yield id(cell), Place(name, f"the variable {name} around it", read, write, name in stored)


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


def write_attribute(owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a class or a Python module, or delete it for ``MISSING``."""
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
