"""Keeps the requested values of one forward, as they were when they were computed.

A kept tensor is copied where the model overwrites it afterwards. Nothing says beforehand where that
is, so the first forward copies every value and compares at the end; later ones copy those that
changed, and look at torch's version counters for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from featuretap.structures import map_tensors
from torch import nn

from .tracked import plain

__all__ = ["Captures", "Stop"]


class Stop(BaseException):
    """Everything is there. No ``Exception``, so that no ``except Exception`` of a model swallows it."""


class Captures:
    """Takes the nodes of a forward and keeps the wanted ones.

    Args:
        wanted: names, as a recorder gives them.
        overwritten: names known to be overwritten; ``None`` if that is still to be learned.
        stop: whether to end the forward when all wanted values are there.

    """

    def __init__(
        self, wanted: Collection[str], overwritten: Collection[str] | None, *, stop: bool
    ) -> None:
        self._missing = set(wanted)
        self._overwritten = overwritten
        self._stop = stop
        self.values: dict[str, Any] = {}
        self.reached: list[str] = []
        self._originals: list[tuple[str, torch.Tensor, torch.Tensor | int]] = []

    @property
    def missing(self) -> set[str]:
        """Wanted names that have not come."""
        return self._missing

    def node(self, name: str, value: Any, module: nn.Module | None = None) -> None:
        """Keep ``value`` if it is wanted."""
        self.reached.append(name)
        if name in self._missing:
            self.take(name, value)

    def call(self, name: str, value: Any, module: nn.Module) -> None:
        """Keep ``value`` if it is wanted."""
        self.node(name, value, module)

    def take(self, name: str, value: Any) -> None:
        """Keep ``value``, and end the forward if it was the last."""
        if name not in self._missing:
            return
        self._missing.discard(name)
        if not self._missing and self._stop:
            # Nothing runs any more that could write it.
            self.values[name] = plain(value)
            raise Stop(self)
        self.values[name] = map_tensors(plain(value), self._keeper(name))

    def _keeper(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if self._overwritten is None:
                copy = tensor.clone()
                self._originals.append((name, tensor, copy))
                return copy
            if name in self._overwritten or tensor.is_inference():
                return tensor.clone()
            self._originals.append((name, tensor, tensor._version))
            return tensor

        return keep

    def overwritten(self) -> set[str]:
        """Return the names whose tensors changed after they were kept, as far as is known."""
        changed = set(self._overwritten or ())
        for name, tensor, before in self._originals:
            if isinstance(before, int):
                same = tensor._version == before
            else:
                same = _identical(tensor, before)
            if not same:
                changed.add(name)
        return changed

    @property
    def damaged(self) -> set[str]:
        """Names whose kept value was overwritten without having been copied."""
        known = self._overwritten
        return set() if known is None else self.overwritten() - set(known)


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            equal = (a == b) | ((a != a) & (b != b))  # noqa: PLR0124 (NaN)
            return bool(equal.all())
    except (RuntimeError, NotImplementedError):
        # No values to compare: meta tensors, and those inside of torch.func transforms.
        return False

