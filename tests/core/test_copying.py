"""Values, and the tensors that they hold."""

from __future__ import annotations

import torch

from featuretap.copying import map_tensors, tensors_of


def test_what_objects_share_is_looked_into_once() -> None:
    """Each of forty lists holds the one before twice: two to the power of forty paths."""
    tensor = torch.ones(2)
    value = [tensor]
    for _ in range(40):
        value = [value, value]
    assert [id(found) for found in tensors_of(value)] == [id(tensor)]


def test_objects_that_hold_each_other_are_copied_once() -> None:
    """Thirty objects, each of which holds all: the copies hold each other, and no original."""

    class Node:
        tensor: torch.Tensor
        nodes: list[Node]

    nodes = [Node() for _ in range(30)]
    for node in nodes:
        node.tensor, node.nodes = torch.ones(1), nodes
    new = map_tensors(nodes[0], torch.Tensor.clone)
    copies = new.nodes
    assert copies[0] is new
    assert not {*map(id, copies)} & {*map(id, nodes)}
    assert all(found is copy for found, copy in zip(copies[1].nodes, copies, strict=True))
    assert not {id(copy.tensor) for copy in copies} & {id(node.tensor) for node in nodes}
