"""A forward that fails leaves state and random numbers as it found them."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch import nn

from featuretap.ambient import Ambient, Gradients
from featuretap.content import ModuleContent, content_of
from featuretap.outside import Outside
from featuretap.undo import Undo

from .captures import Stop
from .findings import Findings
from .plan import Plan

__all__ = ["PutBack"]


class PutBack:
    """Entered around one forward.

    The first forward of a plan shows which buffers move, and whether random numbers are drawn; later
    ones copy that alone, beforehand.
    """

    def __init__(self, plan: Plan, found: Findings) -> None:
        self._plan = plan
        self._found = found

    def __enter__(self) -> PutBack:
        found = self._found
        switches = found.own_code.switches
        self._undo = Undo(self._places(), (), draws=self._plan.draws)
        kept = found.modules if switches else found.storing
        self._contents = [(module, content_of(module)) for module in kept]
        self._others: list[Ambient | Gradients | ModuleContent | Outside] = []
        if switches:
            self._others += [Ambient(), Gradients(found.tree.parameters.values())]
        if found.reaching_outside:
            self._others.append(Outside(found.reaching_outside))
        return self

    def changed(self) -> list[nn.Module]:
        """Return the modules that hold something else since this was entered, of those that may."""
        unchanged = object()
        return [
            module
            for module, content in self._contents
            if next(content.changes(), unchanged) is not unchanged
        ]

    def _places(self) -> Iterator[tuple[dict[str, Any], str]]:
        paths = self._found.tree.paths
        names = self._all_names() if self._plan.moving is None else self._plan.moving
        return ((paths[path]._buffers, name) for path, name in names)

    def _all_names(self) -> Iterator[tuple[str, str]]:
        for path, module in self._found.tree.paths.items():
            if isinstance(module._buffers, dict):  # TorchScript keeps its own behind a wrapper
                yield from ((path, name) for name in module._buffers)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An extractor around this one has all it wants: that is no failure.
        if kind is not None and not issubclass(kind, Stop):
            self._undo.restore()
            for other in (*(content for _, content in self._contents), *self._others):
                other.restore()
        elif self._plan.moving is None:
            self._plan.draws = self._undo.drew
            moved = {(id(registry), name) for registry, name in self._undo.moved()}
            paths = self._found.tree.paths
            self._plan.moving = [
                (path, name)
                for path, name in self._all_names()
                if (id(paths[path]._buffers), name) in moved
            ]
