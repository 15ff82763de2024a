"""Which values depend on the model's inputs or parameters; only what is made of these is a node."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch

from .tracked import Tracked

__all__ = ["Dependents"]


class Dependents:
    """The tensors of one forward that depend on inputs or parameters, by identity.

    Nothing is kept alive: an entry counts only while its tensor lives.

    Args:
        parameters: names of the model's parameters by id; these count from the start.

    """

    def __init__(self, parameters: Mapping[int, str]) -> None:
        self.parameters = dict(parameters)
        self._marked: dict[int, weakref.ref[torch.Tensor]] = {}
        self._devices: dict[int, tuple[torch.device, Tracked]] = {}
        self._dtypes: dict[torch.dtype, Tracked] = {}

    def mark(self, value: Any) -> None:
        """Mark every tensor in ``value``."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self.parameters:
                self._marked[id(value)] = weakref.ref(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.mark(item)
        elif isinstance(value, dict):
            for item in value.values():
                self.mark(item)

    def remember(self, value: Any, source: Tracked) -> None:
        """Remember a device or dtype that was read off a marked tensor.

        These cannot carry a mark. A device is told by identity, torch makes a new object at each read;
        a dtype by value, until the forward of the scope is over.
        """
        if isinstance(value, torch.device):
            self._devices[id(value)] = (value, source)
        elif isinstance(value, torch.dtype):
            self._dtypes[value] = source

    def forget_dtypes(self) -> None:
        """Forget dtypes: another scope runs, where the same dtype has another source."""
        self._dtypes.clear()

    def is_marked(self, tensor: torch.Tensor) -> bool:
        """Say whether ``tensor`` depends on an input or a parameter."""
        if id(tensor) in self.parameters:
            return True
        found = self._marked.get(id(tensor))
        return found is not None and found() is tensor

    def sources(self, value: Any, found: list[Any]) -> list[Any]:
        """Append what ``value`` holds that depends on the model: tensors and tracked values."""
        if isinstance(value, torch.Tensor):
            if self.is_marked(value):
                found.append(value)
        elif isinstance(value, Tracked):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.sources(item, found)
        elif isinstance(value, dict):
            for item in value.values():
                self.sources(item, found)
        elif isinstance(value, slice):
            self.sources((value.start, value.stop, value.step), found)
        elif isinstance(value, torch.device):
            if id(value) in self._devices:
                found.append(self._devices[id(value)][1])
        elif isinstance(value, torch.dtype) and value in self._dtypes:
            found.append(self._dtypes[value])
        return found
