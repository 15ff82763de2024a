"""What a forward may write outside of the modules: attributes of their classes, and globals.

Other threads and the user's own code may write there too, so nothing is put back but what holds
a stand-in, of which nobody else can know.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import fx, nn

from ..inspecting.containers import (
    CONTAINERS,
    contains,
    copied,
    is_changed,
    items_of,
    restore_container,
)
from ..inspecting.looking import is_a
from .outside_places import MISSING, write_attribute

__all__ = ["Surroundings"]


class Surroundings:
    """The class attributes and the globals that the forwards of some modules can reach by name."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        kinds = {type(module) for module in modules}
        classes = {base for kind in kinds for base in _own_classes(kind)}
        owners: list[Any] = [*classes, *_files_of(classes)]
        self._namespaces = [(owner, dict(vars(owner))) for owner in owners]
        self._containers = [
            (value, copied(value))
            for _, namespace in self._namespaces
            for name, value in namespace.items()
            if is_a(value, CONTAINERS) and name != "__builtins__"
        ]

    def restore(self) -> None:
        """Take out every stand-in that was left since this object was made."""
        for owner, before in self._namespaces:
            if not _changed(vars(owner), before):
                continue
            for name, value in list(vars(owner).items()):
                earlier = before.get(name, MISSING)
                if value is not earlier and contains(fx.Proxy, value):
                    write_attribute(owner, name, earlier)
        for container, content in self._containers:
            if is_changed(container, content) and contains(fx.Proxy, items_of(container)):
                restore_container(container, content)


def _own_classes(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if not base.__module__.startswith(("torch.", "builtins")))


def _files_of(classes: set[type]) -> Iterator[Any]:
    names = {base.__module__ for base in classes}
    return (sys.modules[name] for name in names if name in sys.modules)


def _changed(namespace: Any, before: dict[str, Any]) -> bool:
    return len(namespace) != len(before) or not all(
        map(operator.is_, namespace.values(), before.values())
    )
