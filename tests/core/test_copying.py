"""Values, and the tensors that they hold."""

from __future__ import annotations

import torch

from featuretap.copying import tensors_of


def test_what_objects_share_is_looked_into_once() -> None:
    """Each of forty lists holds the one before twice: two to the power of forty paths."""
    tensor = torch.ones(2)
    value = [tensor]
    for _ in range(40):
        value = [value, value]
    assert [id(found) for found in tensors_of(value)] == [id(tensor)]
