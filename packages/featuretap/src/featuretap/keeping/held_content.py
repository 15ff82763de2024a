"""What containers and objects hold, to be compared and put back in place.

So whoever else holds them sees what they held as well.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..inspecting.containers import (
    CONTAINERS,
    copied,
    has_grown,
    is_changed,
    is_same,
    items_of,
    restore_container,
    same_items,
)
from ..inspecting.looking import attributes_of, has_attributes, is_a
from ..inspecting.slots import has_slots, slots_of
from .held import DEPTH, NOT_OPENED
from .put_back import restore_attributes
from .rewinders import Rewinder, copied_iterator, iterator_state, rewinder

__all__ = ["LEAVES", "HeldContent", "changed_keys", "content_of_given"]

LEAVES = frozenset(
    {type(None), bool, int, float, str, bytes, torch.Tensor, nn.Parameter, *weakref.ProxyTypes}
)
_NOT_OPENED = (*NOT_OPENED, types.ModuleType, types.FunctionType, types.MethodType)


class HeldContent:
    """The content of the containers and objects that were added, as it was then.

    Attributes:
        containers: each with a copy of it.
        modules: those that were met, which are not looked into here.
        objects: the attributes of each, and a copy of those.
        rewinders: of what is neither: generators of random numbers, iterators.

    """

    __slots__ = ("containers", "modules", "objects", "rewinders")

    def __init__(self) -> None:
        self.containers: list[tuple[Any, Any]] = []
        self.objects: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.rewinders: list[Rewinder] = []
        self.modules: list[nn.Module] = []

    def __bool__(self) -> bool:
        return bool(self.containers or self.objects or self.rewinders)

    def add(self, value: Any, depth: int, seen: dict[int, int]) -> None:
        """Look into ``value``, and into what it holds.

        Args:
            value: anything.
            depth: how far.
            seen: where is noted what was looked into, and how far.

        """
        kind = type(value)
        if kind in LEAVES or seen.get(id(value), 0) >= depth:
            return
        if is_a(value, tuple):
            for item in items_of(value):
                self.add(item, depth, seen)
            return
        seen[id(value)] = depth
        inside: list[Any] = []
        if is_a(value, CONTAINERS):
            self.containers.append((value, copied(value)))
            inside += items_of(value)
        elif is_a(value, nn.Module):
            self.modules.append(value)
            return
        elif is_a(value, _NOT_OPENED):
            return
        elif (found := rewinder(value)) is not None:
            self.rewinders.append(found)
            if not has_slots(value):
                return
            inside += slots_of(value).values()
        if has_attributes(value):
            own = attributes_of(value)
            held = copied(own)
            self.objects.append((own, held))
            inside += held.values()
        for item in inside:
            self.add(item, depth - 1, seen)

    def add_iterator(
        self, name: str, current: dict[str, Any], values: dict[str, Any], is_read: bool
    ) -> None:
        """Look at the iterator that is an attribute of a module.

        Args:
            name: of the attribute.
            current: the attributes of the module.
            values: what they were, where the iterator of then is put after each time that it is put back.
            is_read: whether the forward names it: then one that cannot be looked at counts as moved.

        """
        value = values[name]
        kept = copied_iterator(value)

        def put(_: object) -> None:
            if kept is not None:
                current[name] = values[name] = copied_iterator(kept)

        look = repr if iterator_state(value) is None else iterator_state
        shown = "" if is_read and look is repr else look(value)
        moved = Rewinder(f"the iterator .{name}", lambda: look(current[name]), shown, put)
        self.rewinders.append(moved)

    def changes(self, *, may_grow: bool = False) -> Iterator[Any]:
        """Yield what is not as it was: the dict and the key, the container, or a name.

        Args:
            may_grow: let containers pass that hold what they held, and more.

        """
        for owner, kept in self.objects:
            if not same_items(owner, kept):
                yield from changed_keys(owner, owner, kept)
        for container, content in self.containers:
            if is_changed(container, content) and not (may_grow and has_grown(container, content)):
                yield id(container)
        yield from (found.name for found in self.rewinders if found.moved())

    def restore(self) -> None:
        """Put back what is not as it was."""
        for current, values in self.objects:
            restore_attributes(current, values)
        for container, content in self.containers:
            restore_container(container, content)
        for found in self.rewinders:
            found.rewind()


def content_of_given(arguments: Any) -> HeldContent:
    """Return what the arguments of a call hold now, tensors aside: caches, counters, generators."""
    content = HeldContent()
    content.add(arguments, DEPTH, {})
    return content


def changed_keys(
    owner: dict[Any, Any], now: dict[Any, Any], before: dict[Any, Any]
) -> Iterator[tuple[int, Any]]:
    """Yield the keys of ``owner``, of which ``now`` is what counts, that are not as they were."""
    for name in list(now) + [name for name in before if name not in now]:
        if not is_same(now.get(name), before.get(name)):
            yield id(owner), name
