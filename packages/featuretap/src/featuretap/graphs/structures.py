"""What a forward returned, with a graph node in place of each tensor, and back.

Tuples, lists and plain dicts are written into a graph as they are. Everything else (an
``OrderedDict``, a dataclass, the outputs of transformers) is kept as :class:`Built`, which says
how to build it again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from ..copying import PLAIN
from ..errors import UntraceableModelError

__all__ = [
    "Built",
    "Opaque",
    "build",
    "freeze",
    "map_nodes",
    "nodes_in",
    "thaw",
]


class Built(NamedTuple):
    """An object that is not a plain tuple, list or dict."""

    kind: type
    keys: tuple[Any, ...]
    values: tuple[Any, ...]


class Opaque:
    """An object that may hold Proxies where nobody can look for them."""

    def __init__(self, value: Any) -> None:
        self.kind = type(value).__name__


def freeze(value: Any, node_of: Callable[[torch.Tensor], fx.Node]) -> Any:
    """Put a node in place of each Proxy and real tensor of ``value``."""
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, torch.Tensor):
        return node_of(value)
    if type(value) is tuple:
        return tuple(freeze(item, node_of) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(freeze(item, node_of) for item in value))
    if type(value).__module__ == "torch.return_types":
        return Built(type(value), (), tuple(freeze(item, node_of) for item in value))
    if type(value) is list:
        return [freeze(item, node_of) for item in value]
    if type(value) is dict:
        return {key: freeze(item, node_of) for key, item in value.items()}
    if isinstance(value, defaultdict):
        return Opaque(value)
    if isinstance(value, dict):
        return Built(type(value), tuple(value), tuple(freeze(v, node_of) for v in value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in fields(value))
        return Built(type(value), names, tuple(freeze(getattr(value, n), node_of) for n in names))
    return value if isinstance(value, PLAIN) else Opaque(value)


def map_nodes(
    value: Any, change: Callable[[Any], Any], kinds: type | tuple[type, ...] = fx.Node
) -> Any:
    """Return a frozen value, or the arguments of a node, with ``change(node)`` in place of each node.

    Args:
        value: what may hold nodes.
        change: what to put in the place of one.
        kinds: classes of what is changed.

    """
    if isinstance(value, kinds):
        return change(value)

    def mapped(item: Any) -> Any:
        return map_nodes(item, change, kinds)

    if isinstance(value, Built):
        return value._replace(values=tuple(map(mapped, value.values)))
    if isinstance(value, tuple) and type(value) not in PLAIN:
        items = tuple(map(mapped, value))
        return type(value)(*items) if hasattr(value, "_fields") else items
    if isinstance(value, list):
        return list(map(mapped, value))
    if isinstance(value, dict):
        return {key: mapped(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(mapped(value.start), mapped(value.stop), mapped(value.step))
    return value


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Yield every node of a frozen value."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        yield from nodes_in(list(value.values()))


def thaw(value: Any, graph: fx.Graph, nodes: dict[fx.Node, fx.Node]) -> Any:
    """Write a frozen value as an argument of ``graph``, whose copies of the nodes are ``nodes``."""

    def write(part: fx.Node | Opaque | Built) -> fx.Node:
        if isinstance(part, fx.Node):
            return nodes[part]
        if isinstance(part, Opaque):
            raise UntraceableModelError(
                f"the forward returns a {part.kind}, whose inside torch.fx cannot see: only tensors, "
                "tuples, lists, dicts and dataclasses of these can be returned. Ask for the nodes "
                "inside, or use backend='hooks'"
            )
        values = [thaw(item, graph, nodes) for item in part.values]
        arguments: Any = (part.kind, part.keys, values)
        return graph.call_function(build, arguments)

    return map_nodes(value, write, (fx.Node, Opaque, Built))


def build(kind: type[Any], keys: tuple[Any, ...], values: list[Any]) -> Any:
    """Build the object that a :class:`Built` stands for."""
    if is_dataclass(kind):
        given = dict(zip(keys, values, strict=True))
        # Of one that is a dict as well, as the outputs of transformers, these are the keys that it has.
        there = [field for field in fields(kind) if field.name in given]
        made = kind(**{field.name: given[field.name] for field in there if field.init})
        for field in (field for field in there if not field.init):
            object.__setattr__(made, field.name, given[field.name])
        return made
    return kind(values if issubclass(kind, tuple) else zip(keys, values, strict=True))
