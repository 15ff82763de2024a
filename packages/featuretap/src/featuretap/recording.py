"""What a trace recorded, its names, and how a name finds its value.

A *point* is a value at a moment: the result of one operation, or what one call of a module
returned. Both are looked up here by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ._compat import compiled_module
from .aliases import torchvision_names
from .facts import written_arguments
from .modules import ModuleTree
from .naming import Namer, join, operation_name
from .structures import build, copy_from_region, copy_value
from .taken_apart import steps_of_containers

__all__ = ["FixedArgument", "ModuleCall", "Point", "Recording"]

# Statements, which have no value of their own.
_UNNAMED = frozenset({operator.setitem, "__setitem__", copy_value, copy_from_region, build})


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module that was looked into.

    Attributes:
        path: the module's path.
        start: the number of events before the call.
        position: index of the last event inside the call; -1 while it runs.
        value: what the forward returned, with nodes in place of tensors (see :mod:`.structures`).

    """

    path: str
    start: int
    position: int = -1
    value: Any = None


class FixedArgument(NamedTuple):
    """An argument of the model that had a fixed value in the trace, and is a node of that value."""

    name: str
    value: Any


class Point(NamedTuple):
    """A value at a moment of the forward."""

    name: str
    position: float
    """Index of the event after which the value is there."""
    value: Any
    """A node, or a structure of nodes."""


class Recording:
    """The events of one traced forward, in execution order.

    Attributes:
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
        self.model = model = tree.model
        self.tree = tree
        self.graph = fx.Graph()
        self.events: list[fx.Node | ModuleCall | FixedArgument] = []
        self.auto_leaves: dict[str, str] = {}
        self.fixed_arguments: dict[str, Any] = {}
        self.placeholders: dict[str, fx.Node] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.read_training = False
        self.other: Recording | None = None
        self.mode = "train" if model.training else "eval"
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
        modules = ((path, compiled_module(m) or m) for path, m in self.tree.paths.items())
        return frozenset(path for path, module in modules if module.training)

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

    @cached_property
    def names(self) -> dict[str, Point]:
        """Every listed node by its name, in execution order."""
        return self._named[0]

    @cached_property
    def calls(self) -> dict[str, Point]:
        """What each call of a module that was looked into returned; ``""`` is the model's output."""
        return {point.name: point for _, point in self.named_calls}

    @cached_property
    def named_calls(self) -> list[tuple[ModuleCall, Point]]:
        """The same, with the calls themselves."""
        return self._named[1]

    @cached_property
    def _named(self) -> tuple[dict[str, Point], list[tuple[ModuleCall, Point]]]:
        namer = Namer(self.tree.reserved)
        names: dict[str, Point] = {}
        calls: list[tuple[ModuleCall, Point]] = []
        with_parameters = self.tree.with_parameters
        dependent: set[fx.Node] = set()
        # A parameter is a node where it is first used, not where it is read: that is all one can see
        # of the real forward.
        unnamed: set[fx.Node] = set()
        hidden = _Hidden()
        for position, event in enumerate(self.events):
            if isinstance(event, ModuleCall):
                if hidden.holds(event.path):
                    continue
                name = namer.module(event.path)
                # After the last event inside, and the innermost of those that end there first.
                place = event.position + 1 / (event.start + 2)
                calls.append((event, Point(name, place, event.value)))
            elif isinstance(event, FixedArgument):
                name = namer.operation("", event.name)
                names[name] = Point(name, position, event.value)
            elif event.op == "get_attr":
                if event.target in self.tree.parameters:
                    dependent.add(event)
                    unnamed.add(event)
            elif (
                event.op == "placeholder"
                or (event.op == "call_module" and event.target in with_parameters)
                or not dependent.isdisjoint(event.all_input_nodes)
            ):
                dependent.add(event)
                for parameter in event.all_input_nodes if unnamed else ():
                    if parameter in unnamed:
                        unnamed.discard(parameter)
                        self._name_parameter(parameter, position, namer, names)
                if event.op in ("call_function", "call_method"):
                    target: Any = event.target
                    written = written_arguments(target, event.args, event.kwargs)
                    for node in written:
                        if isinstance(node, fx.Node):
                            dependent.add(node)
                            dependent.update(self._in_storage_of(node))
                given = None if hidden.holds_node(event) else self._name(event, namer)
                if given is not None:
                    event.meta["featuretap_name"] = given
                    names[given] = Point(given, position, event)
                if event.op == "call_module":
                    hidden.add(str(event.target), self.tree.paths[str(event.target)])
        return names, calls

    def _in_storage_of(self, node: fx.Node) -> Iterable[fx.Node]:
        """Return the nodes of the real tensors that are in the memory of ``node``, if it is one."""
        storage = node.meta.get("featuretap_storage")
        return () if storage is None else self._by_storage[storage]

    @cached_property
    def _by_storage(self) -> dict[int, list[fx.Node]]:
        found: dict[int, list[fx.Node]] = {}
        for event in self.events:
            if isinstance(event, fx.Node) and "featuretap_storage" in event.meta:
                found.setdefault(event.meta["featuretap_storage"], []).append(event)
        return found

    @cached_property
    def _steps_of_containers(self) -> Set[fx.Node]:
        nodes = [event for event in self.events if isinstance(event, fx.Node)]
        return steps_of_containers(nodes, self.auto_leaves) if self.auto_leaves else frozenset()

    def _name_parameter(
        self, node: fx.Node, position: int, namer: Namer, names: dict[str, Point]
    ) -> None:
        given = self._name(node, namer)
        if given is not None:
            node.meta["featuretap_name"] = given
            # It has the value that it has before the use, which may write it.
            names[given] = Point(given, position - 0.5, node)

    def _name(self, node: fx.Node, namer: Namer) -> str | None:
        target: Any = node.target
        if target in _UNNAMED or node in self._steps_of_containers:
            return None
        if "featuretap_given_name" in node.meta:
            return namer.module(node.meta["featuretap_given_name"])
        if node.op == "call_module":
            return namer.module(target)
        if node.op in ("placeholder", "get_attr"):
            return namer.operation("", target)
        operation = node.meta.get("featuretap_operation") or operation_name(target)
        return namer.operation(node.meta["featuretap_scope"], operation)

    # -- look-up ----------------------------------------------------------------------------------

    def find(self, name: str) -> Point | None:
        """Return the point called ``name``, by any of the names it may be called by."""
        point = self.names.get(name) or self.calls.get(name)
        if point is None:
            canonical = self._canonical(name)
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

    def _canonical(self, name: str) -> str:
        """Translate a second path of a shared module to its first."""
        aliases = self.tree.aliases
        if name in aliases:
            return aliases[name]
        scope, _, operation = name.rpartition(".")
        return join(aliases[scope], operation) if scope in aliases else name


class _Hidden:
    """What is inside of leaf modules that ran: how often they called it, and so its name, is not seen."""

    def __init__(self) -> None:
        self.leaves: set[str] = set()

    def add(self, path: str, leaf: nn.Module) -> None:
        """Know that ``leaf`` runs, which may call what it holds."""
        # That of torch reads the weights of its projection, and does not call it.
        if leaf._modules and type(leaf) is not nn.MultiheadAttention:
            self.leaves.add(path)

    def holds(self, path: str) -> bool:
        """Say whether the module at ``path`` is inside of one of the leaves."""
        if not self.leaves:
            return False
        names = path.split(".")
        return any(".".join(names[:length]) in self.leaves for length in range(1, len(names)))

    def holds_node(self, node: fx.Node) -> bool:
        """Say so of the scope of an operation, or of a leaf module."""
        if not self.leaves or node.op == "placeholder":
            return False
        if node.op == "call_module":
            return self.holds(str(node.target))
        return self.holds(f"{node.meta.get('featuretap_scope', '')}.")
