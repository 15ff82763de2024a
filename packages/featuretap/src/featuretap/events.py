"""What a trace records, one after the other, and a value at a moment of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx

__all__ = ["Event", "FixedArgument", "ModuleCall", "Point"]


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module that was looked into.

    Attributes:
        path: the module's path.
        start: the number of events before the call.
        position: index of the last event inside the call; -1 while it runs.
        value: what the forward returned, with nodes in place of tensors (see :mod:`.graphs.structures`).

    """

    path: str
    start: int
    position: int = -1
    value: Any = None


class FixedArgument(NamedTuple):
    """An argument of the model that had a fixed value in the trace, and is a node of that value."""

    name: str
    value: Any


Event = fx.Node | ModuleCall | FixedArgument


class Point(NamedTuple):
    """A value at a moment of the forward."""

    name: str
    position: float
    """Index of the event after which the value is there."""
    value: Any
    """A node, or a structure of nodes."""
