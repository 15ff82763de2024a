"""From a recording and a selection to the smallest graph that is still right.

What is kept, looking backwards from the last selected point:

1. what a selected value is computed from;
2. a write to storage that something kept reads later (fx's own dead-code pass drops these);
3. what leaves a trace behind: random draws, state of the model, assertions.

A selected value is copied where something kept later writes its storage, or the model keeps that
storage for its next call, and only there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, TypeAlias

from torch import fx, nn

from ..copying import copy_from_region, copy_value
from ..events import ModuleCall, Point
from ..inplace import NO_EFFECT, Effect, StorageClasses, effect_of, is_known, leaves_trace
from ..inspecting.whose import is_of_torch
from ..keeping.held import tensors_in
from ..recording import Recording
from ..trace.regions import autocast_only
from . import meta_keys
from .other_names import OtherNames
from .structures import map_nodes, nodes_in, thaw

__all__ = ["Pruning"]

Flags: TypeAlias = Callable[[nn.Module], bool]


class Pruning:
    """One selection of one recording, pruned for each mode that it serves.

    Args:
        recording: the traced forward.
        selection: output key -> point.

    """

    def __init__(self, recording: Recording, selection: Mapping[str, Point]) -> None:
        self._recording = recording
        self._selection = selection
        self._last = max(math.floor(point.position) for point in selection.values())
        self._selected_at: dict[int, list[Point]] = {}
        for point in selection.values():
            self._selected_at.setdefault(math.floor(point.position), []).append(point)
        self._ending_at: dict[int, list[ModuleCall]] = {}
        for event in reversed(recording.events):
            if isinstance(event, ModuleCall):
                self._ending_at.setdefault(event.position, []).append(event)
        self._storage = StorageClasses()
        self._opaque = {path for path, module in _called(recording) if not is_known(module)}
        # What the model keeps beyond a call: the next one may write it.
        self._kept_by_model: list[Any] = list(filter(self._keeps_tensors, self._opaque))
        # The caller sees what is written to an argument, and may pass one tensor as two arguments.
        self._state: list[fx.Node] = list(recording.placeholders.values())
        for placeholder in self._state[1:]:
            self._storage.join(placeholder, self._state[0])
        self._effects = [self._effect(event) for event in recording.events[: self._last + 1]]
        weights, others = self._written_weights(), self._written_by_operations()
        if weights or others:
            self._kept_by_model += weights
            self._last = self._last_write(weights, others)

    def graphs(self, modes: Sequence[Flags], *, consume: bool) -> list[fx.Graph]:
        """Return for each mode a graph that computes the selection and ends after its last point.

        Modes that need the same nodes share one graph.

        Args:
            modes: for each mode, the ``training`` flag that each module has in it.
            consume: whether the recording may be used up, which saves copying its nodes.

        """
        kept = [self._kept(training) for training in modes]
        graphs: list[fx.Graph] = []
        for index, nodes in enumerate(kept):
            first = kept.index(nodes)
            last_graph = all(later == nodes for later in kept[index:])
            graphs.append(
                graphs[first] if first < index else self._build(nodes, consume and last_graph)
            )
        return graphs

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._recording.tree.paths[str(node.target)] if node.op == "call_module" else None

    def _effect(self, event: object) -> Effect:
        if not isinstance(event, fx.Node):
            return NO_EFFECT
        if event.op == "get_attr":
            # All reads of one attribute are the same tensor.
            target = str(event.target)
            self._storage.join(event, target)
            self._state.append(event)
            for path in filter(partial(_is_inside, target), self._opaque):
                self._storage.join(event, path)
            if target not in self._recording.tree.parameters:
                self._kept_by_model.append(event)
        effect = effect_of(event, self._module(event))
        for shared in effect.shares:
            self._storage.join(event, shared)
        return effect

    def _written_weights(self) -> list[str]:
        """Return the parameters that an operation before the last point writes."""
        written = set(self._written(self._effects, 0))
        if not written:
            return []
        parameters = self._recording.tree.parameters
        return [name for name in parameters if self._storage.of(name) in written]

    def _written_by_operations(self) -> set[Any]:
        """Return the storages of arguments and buffers that an operation before the last point writes.

        What a layer of torch does to its own buffers is never taken back.
        """
        written = set(self._written(self._effects, 0, operations=True))
        return written.intersection(map(self._storage.of, self._state)) if written else written

    def _last_write(self, weights: Sequence[str], others: Set[Any]) -> int:
        """Return where one of these is written for the last time.

        What the forward does to what it was given, or to what the model keeps, it may take back at
        its end.

        Args:
            weights: names of parameters.
            others: storages that operations write.

        """
        start = self._last + 1
        later = [self._effect(event) for event in self._recording.events[start:]]
        self._effects += later
        storages = set(map(self._storage.of, weights))
        found = [start - 1]
        for position, effect in enumerate(later, start):
            if not storages.isdisjoint(self._written([effect], position)) or not others.isdisjoint(
                self._written([effect], position, operations=True)
            ):
                found.append(position)
        return found[-1]

    def _written(
        self, effects: Sequence[Effect], start: int, *, operations: bool = False
    ) -> Iterator[Any]:
        """Yield the storages that are written, by modules with code of their own aside."""
        for position, effect in enumerate(effects, start):
            event = self._recording.events[position]
            if not effect.writes or not isinstance(event, fx.Node):
                continue
            if event.op != "call_module" if operations else event.target not in self._opaque:
                yield from map(self._storage.of, filter(_has_storage, effect.writes))

    def _kept(self, training: Flags) -> set[fx.Node]:
        of = self._storage.of
        state = {of(node) for node in self._state}
        live: set[Any] = set()
        needed: set[fx.Node] = set()
        for position in range(self._last, -1, -1):
            for point in self._selected_at.get(position, ()):
                for node in nodes_in(point.value):
                    needed.add(node)
                    live.add(of(node))
            event = self._recording.events[position]
            if not isinstance(event, fx.Node):
                continue
            if event not in needed:
                written = set(map(of, filter(_has_storage, self._effects[position].writes)))
                if (
                    written.isdisjoint(live)
                    and written.isdisjoint(state)
                    and not _is_assertion(event)
                    and not leaves_trace(event, self._module(event), training)
                ):
                    continue
                needed.add(event)
            needed.update(event.all_input_nodes)
            live.update(map(of, event.all_input_nodes))
        return needed

    def _build(self, kept: set[fx.Node], consume: bool) -> fx.Graph:
        graph = self._strip(kept) if consume else fx.Graph()
        last_write = self._last_writes(kept)
        has_regions = any(meta_keys.REGIONS in node.meta for node in kept)
        copy = copy_from_region if has_regions else copy_value
        nodes: dict[fx.Node, fx.Node] = {}

        def take(node: fx.Node) -> fx.Node:
            nodes[node] = node if consume else graph.node_copy(node, nodes.__getitem__)
            return nodes[node]

        latest: fx.Node | None = None
        for placeholder in self._recording.placeholders.values():
            latest = take(placeholder)
        values: dict[int, Any] = {}
        for position in range(self._last + 1):
            node = self._recording.events[position]
            if isinstance(node, fx.Node) and node in kept and node not in nodes:
                latest = take(node)
            for point in self._selected_at.get(position, ()):
                if id(point) not in values:
                    following = latest.next if latest else None
                    with graph.inserting_before(following) if following else nullcontext():
                        values[id(point)] = self._capture(point, graph, nodes, last_write, copy)
                    latest = following.prev if following else None
            self._note_calls(position, latest, nodes)
        graph.output({key: values[id(point)] for key, point in self._selection.items()})
        return graph

    def _strip(self, kept: set[fx.Node]) -> fx.Graph:
        """Erase from the recording's own graph what is not kept."""
        graph = self._recording.graph
        for node in reversed(graph.nodes):
            if node not in kept and node.op != "placeholder":
                graph.erase_node(node)
        return graph

    def _note_calls(
        self, position: int, latest: fx.Node | None, nodes: Mapping[fx.Node, fx.Node]
    ) -> None:
        """Remember which modules return here, for an extractor of this extractor."""
        for call in self._ending_at.get(position, ()):
            if latest and call.path and all(node in nodes for node in nodes_in(call.value)):
                calls = latest.meta.setdefault(meta_keys.CALLS, [])
                calls.append((call.path, map_nodes(call.value, nodes.__getitem__)))

    def _last_writes(self, kept: set[fx.Node]) -> dict[Any, int]:
        last: dict[Any, int] = {}
        for position, effect in enumerate(self._effects):
            if effect.writes and self._recording.events[position] in kept:
                for argument in filter(_has_storage, effect.writes):
                    last[self._storage.of(argument)] = position
        return last

    def _capture(
        self,
        point: Point,
        graph: fx.Graph,
        nodes: dict[fx.Node, fx.Node],
        last_write: Mapping[Any, int],
        copy: Callable[[Any], Any],
    ) -> Any:
        value = thaw(point.value, graph, nodes)
        storages = set(map(self._storage.of, nodes_in(point.value)))
        is_overwritten = any(last_write.get(found, -1) > point.position for found in storages)
        if not is_overwritten and storages.isdisjoint(self._lasting):
            return value
        copied = graph.call_function(copy, (value,))
        copied.meta = {meta_keys.NAME: point.name}
        around = autocast_only(copied.prev.meta.get(meta_keys.REGIONS, ()))
        if around:
            copied.meta[meta_keys.REGIONS] = around
        is_lasting = not storages.isdisjoint(self._lasting)
        if is_lasting or not self._names.is_alone(point.value, math.floor(point.position)):
            return copied
        # The forward goes on with the copy, so that gradients of its output reach the feature.
        value.replace_all_uses_with(copied, delete_user_cb=self._names.is_recorded)
        nodes[point.value] = copied
        return value

    @cached_property
    def _names(self) -> OtherNames:
        return OtherNames(self._recording.events, self._storage, self._opaque)

    @cached_property
    def _lasting(self) -> set[Any]:
        """The storages that the model keeps, which the next call may write, or a module unseen."""
        return set(map(self._storage.of, self._kept_by_model))

    def _keeps_tensors(self, path: str) -> bool:
        """Say whether code of the user's own runs in a leaf that keeps tensors, and may return one."""
        return any(
            next(tensors_in(part), None) is not None
            for part in self._recording.tree.paths[path].modules()
            if not is_of_torch(type(part))
        )


def _called(recording: Recording) -> Iterator[tuple[str, nn.Module]]:
    for event in recording.events:
        if isinstance(event, fx.Node) and event.op == "call_module":
            yield str(event.target), recording.tree.paths[str(event.target)]


def _is_inside(target: str, path: str) -> bool:
    return target.startswith(f"{path}.")


def _has_storage(argument: object) -> bool:
    """Say whether a written argument is a node or the path of a module, and no plain value."""
    return isinstance(argument, (fx.Node, str))


def _is_assertion(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "").startswith("_assert")
