"""What modules hold besides their registries, in whatever containers and objects."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..inspecting import containers
from ..inspecting.looking import attributes_of, has_attributes, is_a
from ..inspecting.slots import has_slots, slots_of

__all__ = [
    "DEPTH",
    "NOT_OPENED",
    "SIMPLE",
    "attributes",
    "is_opened",
    "kept_tensors",
    "parts_of",
    "tensors_in",
    "without_simple",
]

# How deep containers and objects are looked into; what refers to itself is looked into once.
DEPTH = 10
# Loggers lead to all of the process, and note which levels are on.
NOT_OPENED = (
    *(nn.Module, torch.Tensor, type, logging.Filterer, logging.Manager),
    *weakref.ProxyTypes,  # what is behind one belongs to others
)
SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, nn.Parameter})
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_REGISTRIES = frozenset(
    name for name in vars(nn.Module()) if name.startswith("_") and name != "_buffers"
)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds, without parameters, submodules, hooks and plain numbers."""
    for name, value in list(vars(module).items()):
        if type(value) not in SIMPLE and name not in _REGISTRIES:
            yield name, value


def is_opened(value: Any) -> bool:
    """Say whether ``value`` is a container, or an object of the user, that may hold something."""
    if type(value) in SIMPLE or is_a(value, NOT_OPENED):
        return False
    if type(value) is dict and "__builtins__" in value:
        return False  # the globals of some code
    if is_a(value, _CONTAINERS):
        return True
    return not callable(value) and (has_attributes(value) or has_slots(value))


def parts_of(value: Any) -> list[Any]:
    """Return what a container or an object holds now, also while another thread changes it."""
    if is_a(value, _CONTAINERS):
        return containers.items_of(value)
    own = attributes_of(value) if has_attributes(value) else {}
    return [*containers.items_of(own), *slots_of(value).values()]


def without_simple(values: Iterable[Any]) -> list[Any]:
    """Leave out what holds nothing, first of all: a vocabulary has a million of such."""
    return [value for value in values if type(value) not in SIMPLE]


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
        for item in without_simple(parts_of(value)):
            yield from _tensors(item, depth - 1, seen)
