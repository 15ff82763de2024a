"""What modules hold besides their registries: tensors and random generators, in whatever containers."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["attributes", "is_opened", "items_of", "rewinder", "tensors_in"]

# How deep containers and objects are looked into: a helper object with a cache in a dict.
_DEPTH = 3
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
    if type(value) in _SIMPLE or isinstance(value, (nn.Module, torch.Tensor, type)):
        return False
    return isinstance(value, _CONTAINERS) or (hasattr(value, "__dict__") and not callable(value))


def items_of(value: Any) -> list[Any]:
    """Return what a container or an object holds now, also while another thread changes it."""
    if isinstance(value, dict):
        return list(value.values())
    return list(value if isinstance(value, _CONTAINERS) else vars(value).values())


def tensors_in(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that a module holds and that are no parameters: buffers, caches, states."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from module.buffers()
        return
    for _, value in attributes(module):
        yield from _tensors(value, _DEPTH)


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif depth and is_opened(value):
        for item in items_of(value):
            yield from _tensors(item, depth - 1)


def rewinder(value: Any) -> Callable[[], object] | None:
    """Return what puts a random generator back to its state of now; ``None`` if it is none."""
    if isinstance(value, torch.Generator):
        seen = value.get_state()
        return lambda: value.set_state(seen)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        state = value.getstate()
        return lambda: value.setstate(state)
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is None:
        return None
    if isinstance(value, numpy.RandomState):
        legacy = value.get_state(legacy=False)
        return lambda: value.set_state(legacy)
    if isinstance(value, numpy.Generator):
        value = value.bit_generator
    if isinstance(value, numpy.BitGenerator):
        drawn, bits = value.state, value
        return lambda: setattr(bits, "state", drawn)
    return None
