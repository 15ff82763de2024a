"""Sizes and tuples that remember, where a model has put them away: made plain after the forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from featuretap.inspecting.containers import CONTAINERS, copied, items_of, kind_of
from featuretap.inspecting.looking import attributes_of, has_attributes, is_a
from featuretap.inspecting.slots import slots_of
from featuretap.keeping.held import attributes, is_opened

from ..tracked import Tracked, plain

__all__ = ["make_plain", "take_back"]

_DEPTH = 6


def make_plain(modules: Iterable[nn.Module], arguments: Iterable[Any]) -> None:
    """Put plain values in the place of tracked ones, in all that ``modules`` and ``arguments`` keep.

    Containers and objects stay the same; only tuples and frozen sets are made anew. What is put away
    elsewhere, as in a global, is not looked for, and is inert.
    """
    seen: set[int] = set()
    for argument in arguments:
        _bare(argument, _DEPTH, seen)
    for module in modules:
        for name, value in attributes(module):
            bare = _bare(value, _DEPTH, seen)
            if bare is not value:
                vars(module)[name] = bare


def take_back(
    aliases: Mapping[int, tuple[torch.Tensor, torch.Tensor]], modules: Iterable[nn.Module]
) -> None:
    """Put tensors themselves in the place of second names of them, where a module keeps those now."""
    for module in modules:
        for registry in (module._buffers, vars(module)):
            for name, value in list(registry.items()):
                alias, tensor = aliases.get(id(value), (None, None))
                if alias is not None and alias is value:
                    registry[name] = tensor


def _bare(value: Any, depth: int, seen: set[int]) -> Any:
    if issubclass(type(value), Tracked):
        return plain(value)
    if not depth or id(value) in seen or not is_opened(value):
        return value
    if is_a(value, (tuple, frozenset)):
        before = items_of(value)
        items = [_bare(item, depth - 1, seen) for item in before]
        if any(bare is not item for bare, item in zip(items, before, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value
    seen.add(id(value))
    if is_a(value, dict):
        _change_dict(value, depth - 1, seen)
    elif is_a(value, (list, deque)):
        for index, item in enumerate(items_of(value)):
            bare = _bare(item, depth - 1, seen)
            if bare is not item:
                kind_of(value).__setitem__(value, index, bare)
    elif is_a(value, set):
        for item in [item for item in items_of(value) if issubclass(type(item), Tracked)]:
            set.remove(value, item)
            set.add(value, plain(item))
    if has_attributes(value):
        _change_dict(attributes_of(value), depth - 1, seen)
    if not is_a(value, CONTAINERS):
        for name, item in slots_of(value).items():
            bare = _bare(item, depth - 1, seen)
            if bare is not item:
                object.__setattr__(value, name, bare)
    return value


def _change_dict(values: dict[Any, Any], depth: int, seen: set[int]) -> None:
    kind, before = kind_of(values), copied(values)
    pairs = [(_bare(key, depth, seen), _bare(item, depth, seen)) for key, item in before.items()]
    if any(bare is not key for (bare, _), key in zip(pairs, before, strict=True)):
        kind.clear(values)
        for key, bare in pairs:
            kind.__setitem__(values, key, bare)
        return
    for (key, bare), item in zip(pairs, before.values(), strict=True):
        if bare is not item:
            kind.__setitem__(values, key, bare)
