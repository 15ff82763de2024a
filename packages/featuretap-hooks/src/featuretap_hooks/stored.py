"""What the modules of a model keep between forwards: buffers, caches, states, counters.

A feature in the memory of such a tensor would be changed by the next forward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from ._compat import storage_id

__all__ = ["DEPTH", "Stored", "attributes", "is_opened"]

# How deep containers and objects on a module are looked into, as where a model is put back.
DEPTH = 3
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, nn.Parameter})
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
# The registries of a module that never hold a tensor, or only parameters.
_REGISTRIES = frozenset(
    name for name in vars(nn.Module()) if name.startswith("_") and name != "_buffers"
)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module keeps, without parameters, submodules and hooks."""
    for name, value in list(vars(module).items()):
        if type(value) not in _SIMPLE and name not in _REGISTRIES:
            yield name, value


def is_opened(value: Any) -> bool:
    """Say whether ``value`` is a container, or an object of the user, that may hold something."""
    if type(value) in _SIMPLE or isinstance(value, (nn.Module, torch.Tensor, type)):
        return False
    return isinstance(value, _CONTAINERS) or (hasattr(value, "__dict__") and not callable(value))


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value if isinstance(value, _CONTAINERS) else vars(value).values())


class Stored:
    """The tensors that modules keep, besides their parameters.

    Args:
        modules: whose they are.

    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._buffers = [module._buffers for module in modules if module._buffers]
        self._known: list[int] | None = None
        self._attributes: dict[int, set[int]] = {}
        self._storages: set[int] = set()
        self._is_current = False
        self.look_again(modules)

    def begin(self) -> None:
        """Look at the buffers again, once they are asked for: another forward begins."""
        self._is_current = False

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether ``tensor``, which is no parameter, is in the memory of something that is kept."""
        if not self._is_current:
            self._is_current = True
            self._follow_buffers()
        return storage_id(tensor) in self._storages and not isinstance(tensor, nn.Parameter)

    def _follow_buffers(self) -> None:
        # Plain identities, for this is done in each forward; nothing is kept alive by them.
        ids = list(map(id, chain.from_iterable(map(dict.values, self._buffers))))
        if ids != self._known:
            buffers = chain.from_iterable(map(dict.values, self._buffers))
            found = {storage_id(buffer) for buffer in buffers if buffer is not None}
            self._storages = found.union(*self._attributes.values())
            self._known = ids

    def look_again(self, modules: Iterable[nn.Module]) -> None:
        """Look at all that ``modules`` hold now."""
        for module in modules:
            kept = {storage_id(t) for _, v in attributes(module) for t in _tensors(v, DEPTH)}
            self._attributes[id(module)] = kept
        self._buffers = [module._buffers for module in self._modules if module._buffers]
        # Buffers are then looked at again, and with them what is no longer kept is forgotten.
        self._known, self._is_current = None, False


def _tensors(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif depth and is_opened(value):
        for item in _items(value):
            yield from _tensors(item, depth - 1)
