"""Tensors that a module leaves where another finds them, past what it returns: the graph sees neither."""

from __future__ import annotations

from torch import nn

from ..inspecting.reading import (
    CHANGES_CONTAINERS,
    Forward,
    forward_of,
    instructions_of,
    steps_of,
)
from ..inspecting.remembering import by_forward
from ..inspecting.whose import is_of_torch
from ..keeping.put_back import without_own

__all__ = ["Leaves"]


class Leaves:
    """The modules that are one node in a graph, and what they may do behind its back."""

    def __init__(self) -> None:
        self._paths: dict[str, bool] = {}

    def add(self, path: str, leaf: nn.Module) -> None:
        """Note that a leaf is called."""
        if path not in self._paths:
            self._paths[path] = any(map(_may_leave_tensors, leaf.modules()))

    @property
    def that_may_leave_tensors(self) -> str:
        """The path of one that may put a tensor into a container or an attribute; ``""`` if none may."""
        return next((path for path, may in self._paths.items() if may), "")


def _may_leave_tensors(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if any(map(without_own, hooks)):
        return True
    return not is_of_torch(type(module)) and _fills_or_sets(forward_of(module))


@by_forward
def _fills_or_sets(forward: Forward) -> bool:
    return any(
        step.sets_attribute or step.sets_item or step.argument in CHANGES_CONTAINERS
        for step in steps_of(instructions_of(forward))
    )
