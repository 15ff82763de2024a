"""Keeps the requested values of one forward, as they were when they were computed.

A kept tensor is copied where the model overwrites it afterwards, and only there. Nothing says
beforehand where that is: in the first forward every torch function is watched, and a kept tensor is
copied before it is written. Later forwards copy at once what was overwritten then, and look at
torch's version counters for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featuretap.inplace import written_arguments
from featuretap.structures import map_tensors

from ._compat import graph_target, no_torch_function, storage_id
from .tracked import plain

__all__ = ["Captures", "CopyOnWrite", "Stop"]


class Stop(BaseException):
    """Everything is there. No ``Exception``, so that no ``except Exception`` of a model swallows it."""


class Captures:
    """Takes the nodes of a forward and keeps the wanted ones.

    Args:
        wanted: names, as a recorder gives them.
        overwritten: names known to be overwritten; ``None`` if that is still to be learned.
        stop: whether to end the forward when all wanted values are there.

    Attributes:
        missing: wanted names that have not come.
        reached: the names that came, wanted or not.
        values: the kept values by name, in the order in which they came.
        copied: names of which something was copied because the model was about to write it.

    """

    def __init__(
        self, wanted: Collection[str], overwritten: Collection[str] | None, *, stop: bool
    ) -> None:
        self.missing = set(wanted)
        self.reached: list[str] = []
        self._overwritten = overwritten
        self._stop = stop
        self.values: dict[str, Any] = {}
        self.copied: set[str] = set()
        self._kept: list[tuple[str, torch.Tensor, int]] = []
        self._by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}

    @property
    def is_first(self) -> bool:
        """Whether it is still unknown what the model overwrites."""
        return self._overwritten is None

    def node(self, name: str, value: Any, module: nn.Module | None = None) -> None:
        """Keep ``value`` if it is wanted."""
        self.reached.append(name)
        self.take(name, value)

    def call(self, name: str, value: Any, module: nn.Module) -> None:
        """Keep ``value`` if it is wanted."""
        self.node(name, value)

    def take(self, name: str, value: Any) -> None:
        """Keep ``value`` if it is wanted and the first of its name; end the forward if it was the last."""
        if name not in self.missing:
            return
        self.missing.discard(name)
        if not self.missing and self._stop:
            # Nothing runs any more that could write it.
            self.values[name] = plain(value)
            raise Stop(self)
        with (
            no_torch_function()
        ):  # an outer extractor must not take our copies for the model's work
            self.values[name] = map_tensors(plain(value), self._keeper(name))

    def _keeper(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if self._overwritten is None:
                self._by_storage.setdefault(storage_id(tensor), []).append((name, tensor))
            elif name in self._overwritten or tensor.is_inference():
                # Inference tensors have no version counter that would tell.
                return tensor.clone()
            self._kept.append((name, tensor, _version(tensor)))
            return tensor

        return keep

    def before_write(self, tensor: torch.Tensor) -> None:
        """Copy what is kept in the storage of ``tensor``, which is about to be written."""
        if not self._by_storage:
            return
        with no_torch_function():
            for name, kept in self._by_storage.pop(storage_id(tensor), ()):
                self.copied.add(name)
                self.values[name] = map_tensors(self.values[name], _copier(kept))

    @property
    def lost(self) -> set[str]:
        """Names whose tensors were overwritten without having been copied."""
        with no_torch_function():
            return {
                name
                for name, tensor, version in self._kept
                if name not in self.copied and _version(tensor) != version
            }


def _copier(kept: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.clone() if tensor is kept else tensor


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class CopyOnWrite(TorchFunctionMode):
    """While entered, kept values are copied before a torch function writes them."""

    def __init__(self, captures: Captures) -> None:
        super().__init__()
        self._captures = captures

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Look at what ``func`` writes, and run it."""
        kwargs = kwargs or {}
        for written in written_arguments(graph_target(func), args, kwargs):
            if isinstance(written, torch.Tensor):
                self._captures.before_write(written)
        return func(*args, **kwargs)
