"""Where in a model a trace is. Each node remembers the place that it was made in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import fx

from ..graphs import meta_keys
from .regions import Region, RegionWatch

__all__ = ["Place"]

_Stack: TypeAlias = "OrderedDict[str, tuple[str, type]]"


class Place:
    """The forwards that a trace is in, outermost first.

    Attributes:
        scopes: path of each module whose forward runs.
        regions: which of ``no_grad``, ``autocast`` and their like were entered.

    """

    def __init__(self) -> None:
        self.scopes: list[str] = []
        self.regions = RegionWatch()
        self._replayed: tuple[Region, ...] = ()
        self._modules: _Stack = OrderedDict()

    @property
    def scope(self) -> str:
        """The path of the module whose forward is recorded."""
        return self.scopes[-1] if self.scopes else ""

    def enter(self, path: str, kind: type, number: int) -> _Stack:
        """Enter the call of a module; return what :meth:`leave` needs.

        Args:
            path: of the module.
            kind: its class.
            number: tells this call from other calls of the same module.

        """
        around = self._modules
        # Nodes hold on to it, so each call has its own.
        self._modules = OrderedDict(around)
        self._modules[f"{path}@{number}"] = (path, kind)
        return around

    def leave(self, around: _Stack) -> None:
        """Leave the call that :meth:`enter` entered."""
        self._modules = around

    def note_on(self, node: fx.Node) -> None:
        """Let ``node`` remember this place."""
        meta = node.meta
        meta["nn_module_stack"] = self._modules
        meta[meta_keys.SCOPE] = self.scopes[-1] if self.scopes else ""
        regions = self.regions.current()
        if regions or self._replayed:
            meta[meta_keys.REGIONS] = regions + self._replayed

    @contextmanager
    def at(self, scope: str, regions: tuple[Region, ...]) -> Iterator[None]:
        """Be in the forward of ``scope``, inside ``regions``, as another trace was."""
        self.scopes.append(scope)
        self._replayed = regions
        try:
            yield
        finally:
            self.scopes.pop()
            self._replayed = ()
