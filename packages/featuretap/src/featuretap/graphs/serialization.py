"""Graphs as plain data, for ``pickle`` and ``copy``.

A GraphModule pickles its source and traces it again on loading, which loses node names and every
mode but the active one. Here each node is one row; references to other nodes are row numbers.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import fx

from .._compat import own_schemas
from . import meta_keys
from .structures import map_nodes

__all__ = ["graph_from_state", "graph_to_state"]


class _Row(NamedTuple):
    number: int


class _TorchFunction(NamedTuple):
    """A builtin that pickle cannot find by its name, found as an attribute of a torch namespace."""

    path: str


def graph_to_state(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return one row ``(name, op, target, args, kwargs, meta)`` for each node."""
    numbers = {node: _Row(number) for number, node in enumerate(graph.nodes)}
    rows = []
    for node in graph.nodes:
        # Plain containers: the pickles of the immutable ones of fx need its internals.
        args, kwargs = (map_nodes(given, numbers.__getitem__) for given in (node.args, node.kwargs))
        meta = {key: node.meta[key] for key in meta_keys.KEPT if key in node.meta}
        if "nn_module_stack" in meta:
            stack = meta["nn_module_stack"].items()
            meta["nn_module_stack"] = {
                key: (path, _importable(kind)) for key, (path, kind) in stack
            }
        if meta_keys.CALLS in node.meta:
            calls = node.meta[meta_keys.CALLS]
            meta[meta_keys.CALLS] = [
                (path, map_nodes(value, numbers.__getitem__)) for path, value in calls
            ]
        rows.append((node.name, node.op, _as_state(node.target), args, kwargs, meta))
    return rows


def _importable(kind: Any) -> Any:
    """Return a class that pickle finds by its name: ``kind``, or the nearest it inherits from."""
    return next((base for base in kind.__mro__ if _is_importable(base)), torch.nn.Module)


@cache
def _is_importable(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def graph_from_state(rows: list[tuple[Any, ...]]) -> fx.Graph:
    """Build the graph that :func:`graph_to_state` wrote down."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    for name, op, target, args, kwargs, meta in rows:
        called = _function(target.path) if isinstance(target, _TorchFunction) else target
        node = graph.create_node(op, called, _linked(args, nodes), _linked(kwargs, nodes), name)
        node.meta.update(meta)
        nodes.append(node)
        if meta_keys.CALLS in meta:
            calls = meta[meta_keys.CALLS]
            node.meta[meta_keys.CALLS] = [(path, _linked(value, nodes)) for path, value in calls]
    return graph


def _linked(value: Any, nodes: list[fx.Node]) -> Any:
    return map_nodes(value, lambda row: nodes[row.number], _Row)


def _as_state(target: Any) -> Any:
    if own_schemas(target):
        return _TorchFunction(f"ops.{target}")
    name = getattr(target, "__name__", None)
    for namespace in ("", "nn.functional", "_C._nn", "_C", "special", "linalg", "fft"):
        holder = _namespace(namespace)
        if callable(target) and name and getattr(holder, name, None) is target:
            return _TorchFunction(f"{namespace}.{name}" if namespace else name)
    return target


def _function(path: str) -> Any:
    namespace, _, name = path.rpartition(".")
    return getattr(_namespace(namespace), name)


def _namespace(path: str) -> Any:
    holder: Any = torch
    for part in path.split(".") if path else ():
        holder = getattr(holder, part)
    return holder
