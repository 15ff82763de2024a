"""What a recorder hands its findings to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from .going_on import Maker
from .program import Places

__all__ = ["Notes", "Sink"]


class Sink(Protocol):
    """Where nodes go.

    Attributes:
        when_complete: to be told when no more nodes are wanted.

    """

    when_complete: Callable[[], None] | None

    def node(self, name: str, value: Any, maker: Maker = None) -> Any:
        """Take a listed node: an operation, an input, a parameter, a call of a leaf module.

        May return a copy for the forward to go on with.
        """

    def call(self, name: str, value: Any, module: nn.Module) -> None:
        """Take what a call of a module that is looked into returned."""

    def expose(self) -> None:
        """Be told that the forward comes to the memory of a tensor, which no version counts."""


class Notes(Protocol):
    """What later forwards need to know.

    Attributes:
        places: where operations are, for compiled code.
        functions: scope -> the names of its torch functions that compiled code counts.
        constants: the plain arguments of operations, by which one is known again in the other mode.

    """

    places: Places
    functions: dict[str, list[str]]
    constants: dict[str, tuple[str, ...]]
