"""What a trace recorded, its names, and how a name finds its value.

A *point* is a value at a moment: the result of one operation, or what one call of a module
returned. Both are looked up here by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from .events import Event, ModuleCall, Point
from .modules import ModuleTree
from .names.aliases import torchvision_names
from .names.recorded import RecordedNames

__all__ = ["Recording"]


class Recording:
    """The events of one traced forward, in execution order.

    Attributes:
        tree: the modules of the model.
        mode: ``"train"`` or ``"eval"``.
        training: paths of the modules whose ``training`` flag was set.
        placeholders: the node of each argument.
        graph: what :class:`torch.fx.Tracer` made; pruning may use it up.
        events: nodes, and the calls of modules that were looked into.
        auto_leaves: path of each module that became a leaf by itself -> why.
        fixed_arguments: arguments that were given a value when tracing.
        constants: tensors that belong to no module, by the name of their ``get_attr`` node.
        read_training: whether some forward read a ``training`` flag.
        other: the recording of the other mode, if that is another one.
        listing: the call that lists all nodes.

    """

    listing = "get_graph_node_names(model)"

    def __init__(self, tree: ModuleTree) -> None:
        self.tree = tree
        self.graph = fx.Graph()
        self.events: list[Event] = []
        self.auto_leaves: dict[str, str] = {}
        self.fixed_arguments: dict[str, Any] = {}
        self.placeholders: dict[str, fx.Node] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.read_training = False
        self.other: Recording | None = None
        self.mode = "train" if tree.model.training else "eval"
        self.training = self._flagged()
        self._switched = self.training

    # -- while tracing ------------------------------------------------------------------------

    def begin_call(self, path: str) -> ModuleCall:
        """Note that the forward of a module begins to run."""
        call = ModuleCall(path, start=len(self.events))
        self.events.append(call)
        return call

    def end_call(self, call: ModuleCall, value: Any) -> None:
        """Note that it has returned ``value``, with nodes in place of tensors."""
        call.value = value
        call.position = len(self.events) - 1

    def mark(self) -> tuple[int, int]:
        """Remember this moment, for :meth:`rollback`."""
        return len(self.events), len(self.auto_leaves)

    def rollback(self, mark: tuple[int, int]) -> set[fx.Node]:
        """Forget what happened since ``mark``; return the nodes that are gone from the graph."""
        events, leaves = mark
        erased = [event for event in self.events[events:] if isinstance(event, fx.Node)]
        for node in reversed(erased):
            node.graph.erase_node(node)
        del self.events[events:]
        for path in list(self.auto_leaves)[leaves:]:
            del self.auto_leaves[path]
        return set(erased)

    # -- modes ----------------------------------------------------------------------------------

    @property
    def serves_both_modes(self) -> bool:
        """Whether the other mode's forward is the same, because nothing looked at a flag."""
        return not self.read_training and not self.tree.has_own_train_method

    def flags(self, mode: str) -> Callable[[nn.Module], bool]:
        """Return the ``training`` flag that each module has in ``mode``."""
        if self.mode != mode:
            return lambda module: mode == "train"
        return lambda module: (self.tree.path_of(module) or "") in self.training

    def _flagged(self) -> frozenset[str]:
        # What ``torch.compile`` returned may have a flag of its own, which on some torch nobody switches.
        inner = self.tree.compiled
        return frozenset(
            path for path, module in self.tree.paths.items() if inner.get(path, module).training
        )

    def note_flags(self) -> None:
        """Note the flags of now: those that the model's own ``train`` sets in this mode."""
        self._switched = self._flagged()

    def flag_exceptions(self, mode: str) -> Set[str]:
        """Return the paths of the modules whose flag in ``mode`` is the opposite of it.

        They were so when the model was traced, or its own ``train`` makes them so.
        """
        if self.mode != mode:
            return frozenset()
        if mode == "train":
            return self.tree.paths.keys() - (self.training & self._switched)
        return self.training | self._switched

    # -- names ----------------------------------------------------------------------------------

    @property
    def names(self) -> dict[str, Point]:
        """Every listed node by its name, in execution order."""
        return self._named.nodes

    @cached_property
    def calls(self) -> dict[str, Point]:
        """What each call of a module that was looked into returned; ``""`` is the model's output."""
        return {point.name: point for _, point in self.named_calls}

    @property
    def named_calls(self) -> list[tuple[ModuleCall, Point]]:
        """The same, with the calls themselves."""
        return self._named.calls

    @cached_property
    def _named(self) -> RecordedNames:
        return RecordedNames(self.events, self.tree, self.auto_leaves)

    # -- look-up ----------------------------------------------------------------------------------

    def find(self, name: str) -> Point | None:
        """Return the point called ``name``, by any of the names it may be called by."""
        point = self.names.get(name) or self.calls.get(name)
        if point is None:
            canonical = self.tree.canonical(name)
            point = self.names.get(canonical) or self.calls.get(canonical)
        # What torchvision calls so in this mode would be another thing than in the other.
        if point is None and self.other is not None and name in self.other.names:
            return None
        return point or self.stored.get(name) or self.torchvision_points.get(name)

    def names_of_type(self, kind: type[nn.Module]) -> list[str]:
        """Return the name of every call of a module of type ``kind``, in execution order."""
        found = [
            (point.position, name)
            for name, point in self.names.items()
            if isinstance(point.value, fx.Node)
            and point.value.op == "call_module"
            and isinstance(self.tree.paths[str(point.value.target)], kind)
        ]
        for event, point in self.named_calls:
            if point.name and isinstance(self.tree.paths.get(event.path), kind):
                found.append((point.position, point.name))
        return [name for _, name in sorted(found)]

    def leaf_that_hides(self, kind: type[nn.Module]) -> str:
        """Return the path of a leaf by itself that holds modules of a type; ``""`` if there is none."""
        for path in self.auto_leaves:
            inside = islice(self.tree.paths[path].modules(), 1, None)
            if any(isinstance(module, kind) for module in inside):
                return path
        return ""

    def kind_of_module(self, path: str) -> str:
        """Return the name of the class of the module at ``path``; ``""`` if there is none."""
        return self.tree.kind_at(path)

    def known_names(self) -> Iterable[str]:
        """Every name that would be accepted, the listed ones first."""
        return [*self.names, *self.calls, *self.tree.aliases]

    @cached_property
    def torchvision_points(self) -> dict[str, Point]:
        """The names that ``torchvision.models.feature_extraction`` lists, and what they mean there."""
        return dict(torchvision_names(self))

    @cached_property
    def stored(self) -> dict[str, Point]:
        """Buffers and other tensors that the forward reads, by where the model keeps them."""
        return {
            str(event.target): Point(str(event.target), position, event)
            for position, event in enumerate(self.events)
            if isinstance(event, fx.Node) and event.op == "get_attr"
        }
