"""The nodes of one watched forward: what names mean, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from featuretap.modules import ModuleTree
from featuretap.naming import without_counter

from .going_on import Maker

__all__ = ["Index", "ModulesOfIndex", "Point", "read_parameter"]


class Point(NamedTuple):
    """A value at a moment of the forward."""

    name: str
    position: int
    """How many values were there before it."""


class ModulesOfIndex:
    """What a :class:`featuretap.selection.NodeIndex` of this backend knows before any forward.

    Attributes:
        auto_leaves: none: every module is looked into.
        listing: the call that lists all nodes.

    """

    auto_leaves: Mapping[str, str] = {}
    listing = "get_graph_node_names(model, example_args=...)"

    def __init__(self, tree: ModuleTree) -> None:
        self._tree = tree

    def kind_of_module(self, path: str) -> str:
        """Return the name of the class of the module at ``path``; ``""`` if there is none."""
        return self._tree.kind_at(path)


class Index(ModulesOfIndex):
    """Takes the nodes of a forward and remembers their names, not their values.

    Attributes:
        other: of a forward in the other mode, whose nodes this one may reach another time.
        may_miss: whether modules count that this forward did not reach.

    """

    def __init__(self, tree: ModuleTree) -> None:
        super().__init__(tree)
        self.other: Index | None = None
        self.may_miss = False
        self.when_complete: Callable[[], None] | None = None
        self._types: dict[str, type] = {}
        self.names: dict[str, Point] = {}
        self.calls: dict[str, Point] = {}

    # -- what a recorder tells ------------------------------------------------------------------

    def node(self, name: str, value: Any, maker: Maker = None) -> None:
        """Take a listed node."""
        self.names[name] = self._point(name, maker if isinstance(maker, nn.Module) else None)

    def call(self, name: str, value: Any, module: nn.Module) -> None:
        """Take what a module that was looked into returned."""
        self.calls[name] = self._point(name, module)

    def expose(self) -> None:
        """Keep nothing that could be written."""

    def _point(self, name: str, module: nn.Module | None) -> Point:
        if module is not None:
            self._types[name] = type(module)
        return Point(name, len(self))

    def __len__(self) -> int:
        return len(self.names) + len(self.calls)

    # -- what a selection asks ------------------------------------------------------------------

    def find(self, name: str) -> Point | None:
        """Return the point called ``name``, by any path of its module."""
        name = self._tree.canonical(name)
        point = self.names.get(name) or self.calls.get(name)
        if point is None and self.other is not None:
            found = self.other.names.get(name) or self.other.calls.get(name)
            point = found and found._replace(position=len(self))
        if point is None and self.misses(name):
            point = Point(name, len(self))
        return point or self.names.get(read_parameter(name, self._tree))

    def misses(self, name: str) -> bool:
        """Say whether ``name`` is a module that no forward reached, and that counts all the same."""
        if not self.may_miss or name not in self._tree.paths:
            return False
        reached = [self, self.other] if self.other is not None else [self]
        return not any(name in index.names or name in index.calls for index in reached)

    def names_of_type(self, kind: type) -> list[str]:
        """Return the name of every call of a module of type ``kind``, in execution order."""
        found = [name for name, made in self._types.items() if name and issubclass(made, kind)]
        return sorted(found, key=lambda name: (self.names.get(name) or self.calls[name]).position)

    def known_names(self) -> Iterable[str]:
        """Every name that would be accepted, the listed ones first."""
        return [*self.names, *self.calls, *self._tree.aliases]


def read_parameter(name: str, tree: ModuleTree) -> str:
    """Translate what torchvision calls the read of a parameter, ``encoder.encoder_pos_embedding``.

    Returns:
        The name of the parameter; ``""`` if there is none.

    """
    scope, _, operation = name.rpartition(".")
    if scope not in tree.paths:
        return ""
    names = tree.read_names
    return names.get(operation) or names.get(without_counter(operation), "")
