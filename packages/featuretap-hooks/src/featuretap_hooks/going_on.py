"""Whether a forward can go on with a copy of a value, so that the value itself is the feature.

Gradients of the model's output then reach the feature, though the forward writes the value in place
(``conv`` before ``ReLU(inplace=True)``). It can where it knows the value by nothing but what was just
returned.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from featuretap.facts import facts_of
from featuretap.inplace import makes_new
from featuretap.keeping.put_back import without_own

from ._compat import graph_target, is_jit_tracing

__all__ = ["Maker", "is_only_name"]

# The leaf module that made a value, or the function with its arguments; ``None`` if that is not known.
Maker: TypeAlias = "nn.Module | tuple[Any, ...] | None"


def is_only_name(tensor: torch.Tensor, maker: Maker) -> bool:
    """Say whether ``tensor``, just made by ``maker``, is no view and is kept by nobody yet.

    Asked of tensors with a gradient only: without, the feature may as well be the copy. With gradients
    on, torch knows what is a view.
    """
    if maker is None or not torch.is_grad_enabled() or is_jit_tracing():
        return False
    if tensor.is_leaf or tensor._version or tensor._base is not None:
        return False
    if isinstance(maker, nn.Module):
        return makes_new(maker) and not without_own(maker._forward_hooks)
    function, *given = maker
    return facts_of(graph_target(function)).trusted and not _is_among(tensor, given)


def _is_among(tensor: torch.Tensor, values: Any) -> bool:
    """Say whether ``tensor`` is one of ``values``, or in a container among them."""
    if isinstance(values, dict):
        values = values.values()
    return any(
        value is tensor or (isinstance(value, (tuple, list, dict)) and _is_among(tensor, value))
        for value in values
    )
