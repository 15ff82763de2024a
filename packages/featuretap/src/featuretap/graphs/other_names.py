"""Under which names a forward goes on to use the memory of a tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx

from ..events import ModuleCall
from ..inplace import StorageClasses
from .structures import nodes_in

__all__ = ["OtherNames"]


class OtherNames:
    """Finds tensors that the rest of a forward knows under one name alone.

    Args:
        events: of the recorded forward.
        storage: which nodes may share memory.
        opaque: modules with code of their own, which may keep what they were given.

    """

    def __init__(
        self, events: Sequence[object], storage: StorageClasses, opaque: Collection[str]
    ) -> None:
        self._storage = storage
        self._opaque = opaque
        self._made: dict[fx.Node, int] = {}
        self._used: dict[fx.Node, int] = {}
        self._alike: dict[Any, list[fx.Node]] = {}
        for position, event in enumerate(events):
            if isinstance(event, fx.Node):
                self._made[event] = position
                self._alike.setdefault(storage.of(event), []).append(event)
                self._used.update(dict.fromkeys(event.all_input_nodes, position))
        for call in events:
            if isinstance(call, ModuleCall):
                for node in nodes_in(call.value):
                    self._used[node] = max(self._used.get(node, -1), call.position)

    def is_recorded(self, node: fx.Node) -> bool:
        """Say whether ``node`` is one of the forward's own."""
        return node in self._made

    def is_alone(self, value: Any, position: int) -> bool:
        """Say whether ``value`` is made at ``position``, and nothing older in its memory is used later."""
        if not isinstance(value, fx.Node) or self._made.get(value) != position:
            return False
        if value.op == "placeholder":  # the caller knows it, too
            return False
        alike = self._alike[self._storage.of(value)]
        older = [node for node in alike if self._made[node] < position]
        # What autograd keeps of these is written then, too, and it does not see that.
        if older and any(_is_data(node) and self._made[node] > position for node in alike):
            return False
        return all(
            node.op.startswith("call_")
            and node.target not in self._opaque
            and self._used.get(node, -1) <= position
            for node in older
        )


def _is_data(node: fx.Node) -> bool:
    return node.target is getattr and str(node.args[1]) == "data"
