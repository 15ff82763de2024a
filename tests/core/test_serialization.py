"""Graphs as plain data."""

from __future__ import annotations

import operator
import pickle

import torch
import torch.nn.functional as F
from torch import fx

from featuretap.graphs.serialization import graph_from_state, graph_to_state


def test_a_graph_survives_as_data_with_every_kind_of_argument():
    graph = fx.Graph()
    x = graph.placeholder("x")
    parts = graph.call_function(torch.split, (x, 2), {"dim": 1})
    first = graph.call_function(operator.getitem, (parts, 0))
    sliced = graph.call_function(operator.getitem, (first, (slice(None, 1), ..., None)))
    gelu = graph.call_function(F.gelu, (sliced,))
    stacked = graph.call_function(torch.stack, ([gelu, gelu],), {"dim": 0})
    cast = graph.call_method("to", (stacked, torch.float64))
    cast.meta["featuretap_name"] = "to"
    graph.output({"a": cast, "b": [first, {"c": x}]})
    twin = graph_from_state(pickle.loads(pickle.dumps(graph_to_state(graph))))
    assert str(twin) == str(graph)
    assert [node.meta for node in twin.nodes] == [node.meta for node in graph.nodes]


def test_torch_builtins_that_pickle_cannot_name_are_found_again():
    graph = fx.Graph()
    x = graph.placeholder("x")
    for function in (
        torch.relu,
        torch._C._nn.gelu,
        F.linear,
        F.pad,
        torch.special.expit,
        torch._assert,
        torch.ops.aten.relu,
        torch.ops.aten.relu.default,
        torch.ops.aten.mul.Tensor,
    ):
        x = graph.call_function(function, (x,))
    graph.output({"x": x})
    twin = graph_from_state(pickle.loads(pickle.dumps(graph_to_state(graph))))
    assert [node.target for node in twin.nodes] == [node.target for node in graph.nodes]


def test_a_long_graph_does_not_recurse():
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(20_000):
        x = graph.call_function(torch.relu, (x,))
    graph.output({"x": x})
    assert len(graph_from_state(pickle.loads(pickle.dumps(graph_to_state(graph)))).nodes) == 20_002
