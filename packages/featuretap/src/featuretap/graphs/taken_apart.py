"""Steps that only take apart, or put together again, what a module returned that became a leaf by itself.

Had it been looked into, its tuple, dict or object would be the real one, and no operation to open it.
What it returned is not known; these steps say so themselves::

    y = child(x)[0]                  an item by number or key: taken for one of a tuple or dict
    return (y,) + child(x)[1:]       only a tuple is added to a tuple, so the slice was one of a tuple
    y = child(x).last_hidden_state   no tensor has that
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import fx

__all__ = ["steps_of_containers"]

_ADDITIONS = (operator.add, operator.iadd)


def steps_of_containers(nodes: Iterable[fx.Node], auto_leaves: Collection[str]) -> set[fx.Node]:
    """Return those of ``nodes`` that the real forward does in Python alone.

    Args:
        nodes: what was recorded, in execution order.
        auto_leaves: paths of the modules that became leaves by themselves.

    """
    given = {node for node in nodes if node.op == "call_module" and node.target in auto_leaves}
    containers = set(given)
    steps = [node for node in nodes if node.op == "call_function"] if given else []
    for node in steps:
        if node.target in _ADDITIONS:
            containers.update(_joined(node, containers))
        elif _is_slice(node) and node.args[0] in containers and node.args[0] not in given:
            containers.add(node)
    opened = [node for node in steps if node.args and node.args[0] in containers]
    items = {node for node in opened if _is_item(node, (int, str)) or _is_field(node)}
    return items | (containers - given)


def _joined(node: fx.Node, containers: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Yield an addition of a tuple, and the slices that it shows to be tuples as well."""
    tuples = [value for value in node.args if isinstance(value, (tuple, list))]
    others = [value for value in node.args if isinstance(value, fx.Node)]
    if len(tuples) != 1 or len(others) != 1:
        return
    slices: list[fx.Node] = []
    source = others[0]
    while source not in containers and _is_slice(source):
        slices.append(source)
        source = source.all_input_nodes[0]
    if source in containers:
        yield node
        yield from slices


def _is_item(node: fx.Node, kinds: type | tuple[type, ...]) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], kinds)


def _is_slice(node: fx.Node) -> bool:
    return _is_item(node, slice) and isinstance(node.args[0], fx.Node)


def _is_field(node: fx.Node) -> bool:
    return node.target is getattr and not hasattr(torch.Tensor, str(node.args[1]))
