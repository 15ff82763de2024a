"""What containers hold, read and put back past what their classes make of it.

A class of the user's own may build what it gives out (a registry of layers), refuse to be written
twice, or be made with arguments of its own. So everything is done by the methods of the class of Python
that it derives from, and what is kept is of that class.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "CONTAINERS",
    "contains",
    "copied",
    "empty_like",
    "has_grown",
    "instances_in",
    "is_changed",
    "is_same",
    "items_of",
    "kind_of",
    "restore_container",
    "same_items",
]

# What can be changed; an ordered dict has an order of its own, so it is asked for before any dict.
CONTAINERS = (OrderedDict, dict, list, set, deque)
_PYTHONS_OWN = frozenset({dict, list, set})
_NUMBERS = frozenset({int, float, complex, str})


_ABSENT = object()


def contains(kinds: type | tuple[type, ...], *values: object) -> bool:
    """Say whether any of the nested ``values`` holds an instance of ``kinds``."""
    for value in values:
        if isinstance(value, kinds):
            return True
        if isinstance(value, (tuple, list)):
            if contains(kinds, *value):
                return True
        elif isinstance(value, dict):
            if contains(kinds, *dict.values(value)):
                return True
        elif isinstance(value, slice) and contains(kinds, value.start, value.stop, value.step):
            return True
    return False


def instances_in(kinds: type | tuple[type, ...], *values: Any) -> Iterator[Any]:
    """Yield the instances of ``kinds`` in nested tuples, lists, dicts and slices."""
    for value in values:
        if isinstance(value, kinds):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from instances_in(kinds, *value)
        elif isinstance(value, dict):
            yield from instances_in(kinds, *dict.values(value))
        elif isinstance(value, slice):
            yield from instances_in(kinds, value.start, value.stop, value.step)


def copied(container: Any) -> Any:
    """Copy a container, which another thread may be changing, to one of Python's own class."""
    while True:
        try:
            return container.copy() if type(container) in _PYTHONS_OWN else _plain(container)
        except RuntimeError:
            continue


def _plain(container: Any) -> Any:
    if isinstance(container, OrderedDict):
        return dict(OrderedDict.items(container))
    if isinstance(container, dict):
        return dict(dict.items(container))
    if isinstance(container, list):
        return list.copy(container)
    kind = set if isinstance(container, set) else deque
    return kind(kind.__iter__(container))


def empty_like(container: Any) -> Any:
    """Return an empty container of the same class, without a call of what makes one."""
    kind = kind_of(container)
    new = kind.__new__(type(container))
    if isinstance(container, deque):
        deque.__init__(new, (), container.maxlen)
    elif isinstance(container, defaultdict):
        new.default_factory = container.default_factory
    return new


def kind_of(container: Any) -> Any:
    """Return the class of Python's own whose methods read and write a container."""
    return next(kind for kind in CONTAINERS if isinstance(container, kind))


def items_of(container: Any) -> list[Any]:
    """Return what a container holds now."""
    if isinstance(container, tuple):
        return list(tuple.__iter__(container))
    if isinstance(container, frozenset):
        return list(frozenset.__iter__(container))
    content = copied(container)
    return list(content.values() if isinstance(content, dict) else content)


def is_same(a: Any, b: Any) -> bool:
    """Say whether two values are one object, or the same number: a sum is a new object each time."""
    return a is b or (type(a) in _NUMBERS and type(a) is type(b) and bool(a == b))


def same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Say whether two dicts hold the very same objects under the same keys, in the same order."""
    if len(a) != len(b):
        return False
    # Lists: another thread may change a dict while Python code goes through it.
    return _same(list(a.values()), list(b.values())) and list(a) == list(b)


def _same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    return all(map(operator.is_, a, b)) or all(map(is_same, a, b))


def is_changed(container: Any, content: Any) -> bool:
    """Say whether a container holds something else than ``content``, which was copied of it."""
    now = container if type(container) in _PYTHONS_OWN else copied(container)
    if isinstance(now, dict):
        return not same_items(now, content)
    if isinstance(now, set):
        return bool(now != content)
    return len(now) != len(content) or not _same(list(now), list(content))


def has_grown(container: Any, content: Any) -> bool:
    """Say whether a container holds ``content``, and perhaps more: nothing was taken out or exchanged."""
    now = copied(container)
    if isinstance(now, dict):
        return all(is_same(now.get(key, _ABSENT), value) for key, value in content.items())
    if isinstance(now, set):
        return bool(now >= content)
    return len(now) >= len(content) and _same(list(now)[: len(content)], list(content))


def restore_container(container: Any, content: Any) -> None:
    """Let a container hold ``content`` again, which was copied of it."""
    if not is_changed(container, content):
        return
    kind = kind_of(container)
    kind.clear(container)
    if isinstance(container, dict):
        for key, value in content.items():
            kind.__setitem__(container, key, value)
    elif isinstance(container, set):
        set.update(container, content)
    else:
        kind.extend(container, content)
