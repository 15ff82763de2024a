"""The names of what a trace recorded: of the nodes (N1), and of what modules returned (N6)."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import fx, nn

from ..copying import copy_from_region, copy_value
from ..events import Event, FixedArgument, ModuleCall, Point
from ..facts import written_arguments
from ..graphs import meta_keys
from ..graphs.structures import build
from ..graphs.taken_apart import steps_of_containers
from ..modules import ModuleTree
from ..naming import Namer, operation_name, paths_above

__all__ = ["RecordedNames"]

# Statements, which have no value of their own.
_UNNAMED = frozenset({operator.setitem, "__setitem__", copy_value, copy_from_region, build})


class RecordedNames:
    """Names the events of one trace, in execution order.

    Args:
        events: what was recorded.
        tree: the modules of the model.
        auto_leaves: paths of the modules that became leaves by themselves.

    Attributes:
        nodes: every listed node by its name.
        calls: each call of a module that was looked into, and what it returned.

    """

    def __init__(
        self, events: Sequence[Event], tree: ModuleTree, auto_leaves: Collection[str]
    ) -> None:
        self.nodes: dict[str, Point] = {}
        self.calls: list[tuple[ModuleCall, Point]] = []
        self._events = events
        self._tree = tree
        self._auto_leaves = auto_leaves
        self._namer = Namer(tree.reserved)
        self._hidden = _Hidden()
        self._dependent: set[fx.Node] = set()
        # A parameter is a node where it is first used, not where it is read: that is all one can see
        # of the real forward.
        self._unused: set[fx.Node] = set()
        for position, event in enumerate(events):
            if isinstance(event, ModuleCall):
                self._returned(event)
            elif isinstance(event, FixedArgument):
                self._take(self._namer.operation("", event.name), position, event.value)
            elif event.op == "get_attr":
                if event.target in tree.parameters:
                    self._dependent.add(event)
                    self._unused.add(event)
            elif self._depends(event):
                self._computed(event, position)

    def _returned(self, call: ModuleCall) -> None:
        if not self._hidden.holds(call.path):
            name = self._namer.module(call.path)
            # After the last event inside, and the innermost of those that end there first.
            place = call.position + 1 / (call.start + 2)
            self.calls.append((call, Point(name, place, call.value)))

    def _depends(self, node: fx.Node) -> bool:
        is_source = node.op == "placeholder" or (
            node.op == "call_module" and node.target in self._tree.with_parameters
        )
        return is_source or not self._dependent.isdisjoint(node.all_input_nodes)

    def _computed(self, node: fx.Node, position: int) -> None:
        self._dependent.add(node)
        parameters = [n for n in node.all_input_nodes if n in self._unused] if self._unused else ()
        for number, parameter in enumerate(parameters, 1):
            self._unused.discard(parameter)
            # It has the value that it has before the use, which may write it; modules that end there
            # come before, and it is one after the other.
            self._name(parameter, position - 0.5 / (number + 1))
        if node.op in ("call_function", "call_method"):
            target: Any = node.target
            for written in written_arguments(target, node.args, node.kwargs):
                if isinstance(written, fx.Node):
                    self._dependent.add(written)
                    self._dependent.update(self._in_storage_of(written))
        if not self._hidden.holds_node(node):
            self._name(node, position)
        if node.op == "call_module":
            self._hidden.add(str(node.target), self._tree.paths[str(node.target)])

    def _in_storage_of(self, node: fx.Node) -> Iterable[fx.Node]:
        """Return the nodes of the real tensors that are in the memory of ``node``, if it is one."""
        storage = node.meta.get(meta_keys.STORAGE)
        return () if storage is None else self._by_storage[storage]

    @cached_property
    def _by_storage(self) -> dict[int, list[fx.Node]]:
        found: dict[int, list[fx.Node]] = {}
        for event in self._events:
            if isinstance(event, fx.Node) and meta_keys.STORAGE in event.meta:
                found.setdefault(event.meta[meta_keys.STORAGE], []).append(event)
        return found

    @cached_property
    def _steps_of_containers(self) -> Collection[fx.Node]:
        nodes = [event for event in self._events if isinstance(event, fx.Node)]
        return steps_of_containers(nodes, self._auto_leaves) if self._auto_leaves else ()

    def _take(self, name: str, position: float, value: Any) -> None:
        self.nodes[name] = Point(name, position, value)

    def _name(self, node: fx.Node, position: float) -> None:
        target: Any = node.target
        if target in _UNNAMED or node in self._steps_of_containers:
            return
        if meta_keys.GIVEN_NAME in node.meta:
            name = self._namer.module(node.meta[meta_keys.GIVEN_NAME])
        elif node.op == "call_module":
            name = self._namer.module(target)
        elif node.op in ("placeholder", "get_attr"):
            name = self._namer.operation("", target)
        else:
            operation = node.meta.get(meta_keys.OPERATION) or operation_name(target)
            name = self._namer.operation(node.meta[meta_keys.SCOPE], operation)
        node.meta[meta_keys.NAME] = name
        self._take(name, position, node)


class _Hidden:
    """The modules inside of leaf modules that ran, which have no names from then on.

    Nobody sees how often the leaf called them, and so what the number of a later call would be.
    """

    def __init__(self) -> None:
        self.leaves: set[str] = set()

    def add(self, path: str, leaf: nn.Module) -> None:
        """Know that ``leaf`` runs, which may call what it holds."""
        # That of torch reads the weights of its projection, and does not call it.
        if leaf._modules and type(leaf) is not nn.MultiheadAttention:
            self.leaves.add(path)

    def holds(self, path: str) -> bool:
        """Say whether the module at ``path`` is inside of one of the leaves."""
        return bool(self.leaves) and any(above in self.leaves for above in paths_above(path))

    def holds_node(self, node: fx.Node) -> bool:
        """Say so of the scope of an operation, or of a leaf module."""
        if not self.leaves or node.op == "placeholder":
            return False
        if node.op == "call_module":
            return self.holds(str(node.target))
        return self.holds(f"{node.meta.get(meta_keys.SCOPE, '')}.")
