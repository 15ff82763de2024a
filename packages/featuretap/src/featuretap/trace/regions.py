"""``no_grad``, ``enable_grad``, ``inference_mode`` and ``autocast`` regions of a forward.

A graph has no place for them. While tracing, the context managers themselves are watched, so that
each node knows the regions it ran in; the generated code enters them again. Watching what was
entered, and not the state that results, keeps also an ``autocast(enabled=False)`` island, which
changes nothing until the extractor is called under autocast.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from .. import _compat
from .replaced import attributes_replaced

__all__ = ["Region", "RegionWatch", "autocast_only"]


class Region(NamedTuple):
    """One context manager, its arguments, and which of its entries this is.

    Two ``autocast`` regions of one kind are not one: each casts the weights anew.
    """

    enter: type
    arguments: tuple[tuple[str, Any], ...]
    number: int


def _region_of(manager: Any, number: int) -> Region:
    if isinstance(manager, torch.autocast):
        return Region(torch.autocast, _compat.autocast_arguments(manager), number)
    if isinstance(manager, torch.set_grad_enabled):
        return Region(torch.set_grad_enabled, (("mode", manager.mode),), number)
    if isinstance(manager, torch.inference_mode):
        return Region(torch.inference_mode, (("mode", manager.mode),), number)
    return Region(type(manager), (), number)


def autocast_only(regions: tuple[Region, ...]) -> tuple[Region, ...]:
    """Return the outermost regions, as far as all of them are of ``autocast``.

    What copies a value may stay in these. To leave one would end it: the next operation would cast its
    weights anew.
    """
    return tuple(takewhile(lambda region: region.enter is torch.autocast, regions))


_WATCHED: tuple[type, ...] = (
    torch.no_grad,
    torch.enable_grad,
    torch.set_grad_enabled,
    torch.inference_mode,
    torch.autocast,
)
_NO_GRAD = Region(torch.no_grad, (), -1)


class RegionWatch:
    """Notes the regions that this thread is in."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._regions: tuple[Region, ...] = ()
        self._entered = 0

    def current(self) -> tuple[Region, ...]:
        """Return the regions entered since the watch began, outermost first."""
        if not torch.is_grad_enabled() and not self._regions:
            # ``torch.set_grad_enabled(False)`` as a statement.
            return (_NO_GRAD,)
        return self._regions

    def noting(self) -> AbstractContextManager[None]:
        """Return what notes the regions while it is entered."""
        makers = (("__enter__", self._entering), ("__exit__", self._leaving))
        return attributes_replaced(
            (manager, name, make) for manager in _WATCHED for name, make in makers
        )

    def _entering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def enter(manager: Any) -> Any:
            result = original(manager)
            if threading.get_ident() == self._thread:
                self._regions = (*self._regions, _region_of(manager, self._entered))
                self._entered += 1
            return result

        return enter

    def _leaving(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def leave(manager: Any, *error: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._regions = self._regions[:-1]
            return original(manager, *error)

        return leave
