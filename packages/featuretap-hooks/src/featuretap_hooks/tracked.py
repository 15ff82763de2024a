"""Sizes and tuples that remember that they came from the model.

``x.shape``, ``x.size(0)`` and the tuples that operations return are nodes of their own, and so is
what is computed from them. They come back as subclasses of ``int``, ``float``, ``tuple``, ``list``
and ``dict`` that tell the recorder about item access, unpacking and arithmetic, and are otherwise
the real thing: also ``value.__class__`` and ``isinstance`` say so, though ``type(value)`` cannot.
When the forward is over they are inert.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from featuretap.names.operations import is_call
from featuretap.naming import operation_name
from featuretap.standins.asked_types import answer_for

from ._compat import map_as_plain
from .inspecting.instructions import compares
from .origins import Origin

__all__ = ["CONSTANTS", "Tracked", "TrackedConstant", "plain", "track"]


class Tracked:
    """Mixed into ``int``, ``float``, ``tuple``, ``list`` and ``dict``."""

    _origin: Origin

    def __new__(cls, *args: Any) -> Any:
        """Make the plain thing, as a forward expects that says ``type(sizes)(...)``."""
        return _PLAIN_KINDS[cls](*args) if cls in _PLAIN_KINDS else object.__new__(cls)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(plain(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        value = plain(self)
        kind = type(value)
        return (kind, (value,)) if kind in _COPIES_ITSELF else value.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(plain(self), memo)

    # fx makes a node of an attribute that is put into a text, and none of the text.

    def __format__(self, how: str) -> str:
        return format(_used(self), how)

    def __repr__(self) -> str:
        return repr(_used(self))

    def __str__(self) -> str:
        return str(_used(self))


def _used(tracked: Tracked) -> Any:
    recorder = tracked._origin.recorder
    if recorder.listening:
        recorder.use(tracked)
    return plain(tracked)


def _tell(tracked: Tracked, operation: str, value: Any, *others: Any) -> Any:
    recorder = tracked._origin.recorder
    if recorder.listening:
        return recorder.derive(operation, value, tracked, *others)
    # One that an earlier forward put away; the other side may be of this one.
    fresh = [o for o in others if issubclass(type(o), Tracked) and o._origin.recorder.listening]
    return fresh[0]._origin.recorder.derive(operation, value, *fresh) if fresh else value


class _Number(Tracked):
    def __divmod__(self: Any, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self: Any, other: Any) -> Any:
        return other // self, other % self


class TrackedInt(_Number, int):
    """An ``int`` that came from the model."""

    __hash__ = int.__hash__


class TrackedFloat(_Number, float):
    """A ``float`` that came from the model."""

    __hash__ = float.__hash__


def _equality(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    operation = operation_name(function)

    def method(self: Any, other: Any) -> Any:
        if isinstance(other, torch.Tensor):
            return NotImplemented
        value = function(plain(self), plain(other))
        # Dicts and sets compare too, in silence.
        return _tell(self, operation, value, other) if compares(sys._getframe(1)) else value

    return method


_NUMBERS: dict[Any, Any] = {int: TrackedInt, float: TrackedFloat}


def _binary(function: Callable[[Any, Any], Any], *, reflected: bool) -> Callable[..., Any]:
    operation = operation_name(function)

    def method(self: Any, other: Any, *modulo: Any) -> Any:
        # ``(1,) * x.ndim`` is an operation of the size, too.
        if not isinstance(other, (int, float, *((tuple, list) if operation == "mul" else ()))):
            return NotImplemented
        pair = (plain(other), plain(self)) if reflected else (plain(self), plain(other))
        value = pow(*pair, *plain(modulo)) if modulo else function(*pair)
        return _tell(self, operation, value, other, *modulo)

    return method


def _method(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: _tell(self, operation, function(plain(self), *plain(args)), *args)


_ARITHMETIC = "add sub mul truediv floordiv mod pow lshift rshift and_ or_ xor".split()
for _name in _ARITHMETIC:
    _function = getattr(operator, _name)
    setattr(_Number, f"__{_name.rstrip('_')}__", _binary(_function, reflected=False))
    setattr(_Number, f"__r{_name.rstrip('_')}__", _binary(_function, reflected=True))
for _name in "lt le gt ge".split():
    setattr(_Number, f"__{_name}__", _binary(getattr(operator, _name), reflected=False))
for _function in (operator.neg, operator.pos, operator.invert, abs, round):
    _name = operation_name(_function)
    setattr(_Number, f"__{_name}__", _method(_name, _function))
for _kind, _tracked in _NUMBERS.items():
    for _name in (name for name in dir(_kind) if not name.startswith("_")):
        _own = getattr(_kind, _name)
        if callable(_own):
            setattr(_tracked, _name, _method(_name, _own))
        else:
            setattr(_tracked, _name, property(_method("getattr", _own.__get__)))


class _Sequence(Tracked):
    def __getitem__(self, index: Any) -> Any:
        value = plain(self)[index]
        # Torch's argument parser looks at the first size of ``x.view(x.shape)``, on some versions.
        return value if is_call(sys._getframe(1)) else _tell(self, "getitem", value, index)

    def __iter__(self) -> Iterator[Any]:
        for item in plain(self):
            yield _tell(self, "getitem", item)


def _method_or_field(name: str) -> property:
    """Return what reads a method of tuples, or the field that a named tuple has of that name."""

    def read(self: Any) -> Any:
        if getattr(type(self._plain), name) is not getattr(tuple, name):
            return self.__getattr__(name)
        method = getattr(self._plain, name)
        return lambda *args: _tell(self, name, method(*plain(args)), *args)

    return property(read)


def _concatenation(kind: type) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the methods that put a tracked tuple or list and another one together."""

    def add(self: Any, other: Any) -> Any:
        if not isinstance(other, kind):
            return NotImplemented
        return _tell(self, "add", plain(self) + plain(other), other)

    def add_to(self: Any, other: Any) -> Any:
        if not isinstance(other, kind):
            return NotImplemented
        return _tell(self, "add", plain(other) + plain(self), other)

    return add, add_to


class TrackedTuple(_Sequence, tuple):  # type: ignore[type-arg]
    """A ``tuple``, or a result with named fields, that came from the model."""

    _plain: Any

    __hash__ = tuple.__hash__

    __add__, __radd__ = _concatenation(tuple)

    def __mul__(self, times: Any) -> Any:
        return _tell(self, "mul", plain(self) * plain(times), times)

    __rmul__ = __mul__

    for _name in ("count", "index"):
        locals()[_name] = _method_or_field(_name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_plain":
            raise AttributeError(name)
        value = getattr(self._plain, name)
        if callable(value):
            return lambda *args, **kwargs: _tell(self, name, value(*args, **kwargs))
        recorder = self._origin.recorder
        return recorder.field(value, self) if recorder.listening else value


# Methods that fill the container with the items of their last argument.
_TAKE_ITEMS = ("extend", "update", "__iadd__", "__ior__")


def _changed_too(kind: type, name: str) -> Callable[..., Any]:
    """Return a method that changes a tracked container and the one that it stands for."""
    function = getattr(kind, name)
    operation = operation_name(getattr(operator, name, name))
    is_statement = name in ("__setitem__", "__delitem__")

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        takes_items = name in _TAKE_ITEMS or (name == "__setitem__" and type(args[0]) is slice)
        if takes_items and args and isinstance(args[-1], Iterator):
            # It gives its items once, and two containers are filled.
            args = (*args[:-1], list(args[-1]))
        function(self._plain, *plain(args), **plain(kwargs))
        # The user's own ``key`` is asked once.
        is_sorted = name == "sort"
        value = list.__init__(self, self._plain) if is_sorted else function(self, *args, **kwargs)
        return value if is_statement else _tell(self, operation, value, *args, *kwargs.values())

    return method


class TrackedList(_Sequence, list):  # type: ignore[type-arg]
    """A ``list`` that came from the model."""

    _plain: Any

    __add__, __radd__ = _concatenation(list)

    for _name in "append extend insert pop remove clear sort reverse".split():
        locals()[_name] = _changed_too(list, _name)
    for _name in "__setitem__ __delitem__ __iadd__ __imul__".split():
        locals()[_name] = _changed_too(list, _name)


class TrackedDict(Tracked, dict):  # type: ignore[type-arg]
    """A ``dict`` that came from the model."""

    _plain: Any

    for _name in "pop popitem setdefault update clear __setitem__ __delitem__ __ior__".split():
        locals()[_name] = _changed_too(dict, _name)

    def __getitem__(self, key: Any) -> Any:
        return _tell(self, "getitem", dict.__getitem__(self, key), key)

    def get(self, key: Any, default: Any = None) -> Any:
        return _tell(self, "get", dict.get(self, key, default), key)


for _kind in (_Number, TrackedTuple, TrackedList, TrackedDict):
    for _name in ("eq", "ne"):
        setattr(_kind, f"__{_name}__", _equality(getattr(operator, _name)))


class TrackedConstant(Tracked):
    """Stands for a device, dtype or layout, which cannot be subclassed, where it came from the model."""

    def __init__(self, value: Any) -> None:
        self.value = value


_CONTAINERS: dict[Any, Any] = {list: TrackedList, dict: TrackedDict}
_HOLDERS = frozenset({TrackedTuple, TrackedList, TrackedDict})
_PLAIN_KINDS: dict[Any, Any] = {
    **{tracked: kind for kind, tracked in (*_NUMBERS.items(), *_CONTAINERS.items())},
    TrackedTuple: tuple,
}
CONSTANTS = (torch.device, torch.dtype, torch.layout)
_COPIES_ITSELF = frozenset({int, float, tuple, list, dict})


def track(value: Any, origin: Origin, *, of_any_class: bool = False) -> Any:
    """Return ``value`` so that it tells ``origin`` what is done with it, if it is of a kind that can.

    Of named tuples these are torch's own, and with ``of_any_class`` all.
    """
    kind: Any = type(value)
    tracked: Any
    if kind in _NUMBERS:
        tracked = kind.__new__(_NUMBERS[kind], value)
    elif (
        issubclass(kind, tuple) and kind is not TrackedTuple and (of_any_class or _is_result(kind))
    ):
        tracked = tuple.__new__(TrackedTuple, value)
        tracked._plain = value
    elif kind in _CONTAINERS:
        tracked = kind.__new__(_CONTAINERS[kind])
        kind.__init__(tracked, value)
        tracked._plain = value
    elif kind in CONSTANTS:
        tracked = TrackedConstant(value)
    else:
        return value
    tracked._origin = origin
    return tracked


def _is_result(kind: type) -> bool:
    return kind is tuple or kind is torch.Size or kind.__module__ == "torch.return_types"


_NEVER_TRACKED = frozenset({torch.Tensor, nn.Parameter, type(None), bool, int, float, str})


def plain(value: Any) -> Any:
    """Return ``value`` as it would be if nobody watched, containers included."""
    kind = type(value)
    if kind in _NEVER_TRACKED:
        return value
    if kind is TrackedInt:
        return int.__int__(value)
    if kind is TrackedFloat:
        return float.__float__(value)
    if kind in _HOLDERS:
        return value._plain
    if kind is TrackedConstant:
        return value.value
    if kind is list:
        items = list(map(plain, value))
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if kind is tuple:
        for item in value:
            if plain(item) is not item:
                return tuple(map(plain, value))
        return value
    if kind is dict and not value:
        return value
    if kind is dict:
        pairs = {key: plain(item) for key, item in value.items()}
        changed = any(a is not b for a, b in zip(pairs.values(), value.values(), strict=True))
        return pairs if changed else value
    if kind is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value


answer_for(Tracked, lambda value: value.__class__)
# ``tree_map`` goes by the very type of a container.
for _holder in _HOLDERS:
    map_as_plain(_holder, plain)
