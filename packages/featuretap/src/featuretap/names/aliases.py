"""The names that torchvision's feature extraction gives to the nodes of the same forward.

torchvision lists modules of ``torchvision.ops`` as one node, calls a parameter by its path twice
(``encoder.encoder_pos_embedding``) and takes digits at the end of a module's name for a counter.
The rule is read off ``torchvision/models/feature_extraction.py`` (``NodePathTracer``, torchvision
0.15 to 0.29), and applied in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import fx

from ..events import ModuleCall, Point
from ..graphs import meta_keys
from ..naming import join, operation_name

if TYPE_CHECKING:
    from ..recording import Recording

__all__ = ["torchvision_names"]

_COUNTED = re.compile(r"(.+)_([0-9]+)$")


def torchvision_names(recording: Recording) -> Iterator[tuple[str, Point]]:
    """Yield the names that torchvision lists, in its order, with the point each means there."""
    by_node = {id(point.value): point for point in recording.names.values()}
    fixed = {point.position: point for point in recording.names.values()}
    by_start = {call.start: point for call, point in recording.named_calls}
    counters: dict[str, int] = {}
    skip_to = -1
    for position, event in enumerate(recording.events):
        if position <= skip_to:
            continue
        if not isinstance(event, ModuleCall):
            if isinstance(event, fx.Node):
                point, base = by_node.get(id(event)), _base(event)
                if event.op == "get_attr" and event.target in recording.tree.parameters:
                    point = point or recording.stored[str(event.target)]
            else:
                point, base = fixed[position], event.name
        else:
            if not _is_torchvision_operator(recording.tree.paths.get(event.path)):
                continue
            skip_to = event.position
            point = by_start.get(event.start)
            base = event.path
        if point is not None:
            yield _count(base, counters), point


def _is_torchvision_operator(module: object) -> bool:
    return any(kind.__module__.startswith("torchvision.ops.") for kind in type(module).__mro__)


def _base(node: fx.Node) -> str:
    target = node.target
    if node.op == "call_module":
        return str(target)
    is_read = node.op == "get_attr"
    operation = str(target).replace(".", "_").lower() if is_read else operation_name(target)
    return join(node.meta[meta_keys.SCOPE], operation)


def _count(name: str, counters: dict[str, int]) -> str:
    """Strip what looks like a counter, then count as torchvision does."""
    counted = _COUNTED.match(name)
    name = counted[1] if counted else name
    if name in counters:
        name = f"{name}_{counters[name]}"
    counters[name] = 1
    counted = _COUNTED.match(name)
    if counted:
        counters[counted[1]] = int(counted[2]) + 1
    return name
