"""What to say of a node that a forward did not reach."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from featuretap import NodeNotReachedError
from featuretap.errors import nearest
from featuretap.naming import without_counter

from .example import watch_apart
from .findings import Findings

__all__ = ["all_reached", "not_reached"]


def all_reached(found: Findings, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Return the nodes of the same forward, run once more in full; none if it fails.

    It leaves no trace. Where processes run in step nothing is run.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return []
    try:
        return list(watch_apart(found, args, kwargs).index.known_names())
    except Exception:
        return []


def not_reached(
    model: nn.Module, missing: Collection[str], reached: Sequence[str]
) -> NodeNotReachedError:
    """Make the error that names what was not reached, and what was."""
    asked = sorted(missing)
    # The other forward may have drawn other random numbers, and reached it.
    reached = [name for name in reached if name not in missing]
    # Its other calls come first: the call of this name may have raised.
    again = [name for name in reached if without_counter(name) == asked[0]]
    near = list(dict.fromkeys([*again[:1], *nearest(asked[0], reached)]))[:3]
    names = ", ".join(map(repr, near or reached[-3:])) or "none of the requested nodes"
    return NodeNotReachedError(
        f"this forward of {type(model).__name__} did not reach {', '.join(map(repr, asked))}. "
        f"Nearest of the {len(reached)} nodes it reached: {names}. Ask for a node that every "
        "forward reaches, list them with get_graph_node_names(model, example_args=...), or pass "
        "missing='skip' to leave out what is not there",
        asked[0],
        near,
    )
