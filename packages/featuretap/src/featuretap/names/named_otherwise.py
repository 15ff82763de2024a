"""Whether two forwards differ in nothing but which steps have names, and so in the numbers of names.

fx names the items of a dict that the model is given, and arithmetic of numbers, where only a stand-in can
see them; whoever watches the real forward does not, and counts the operations of the same kind from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..comparing import identical
from ..naming import without_counter

__all__ = ["is_named_otherwise"]

# Ways to take a value out of a container or an object.
_READS = frozenset("getitem getattr get pop keys values items".split())


def is_named_otherwise(recorded: Mapping[str, Any], real: Mapping[str, Any]) -> bool:
    """Say whether each value of the real forward was recorded, under another name of its kind, in order.

    What was recorded besides must be a number or another value that is no tensor, or have been read out
    of something.

    Args:
        recorded: the value of each node, in execution order.
        real: the same of the real forward.

    >>> is_named_otherwise({"getitem": 1, "getitem_1": 2, "add": 3}, {"getitem": 2, "add": 3})
    True
    >>> is_named_otherwise({"getitem": 1, "getitem_1": 2, "add": 3}, {"getitem": 2, "add": 4})
    False

    """
    mine, others = _by_kind(recorded), _by_kind(real)
    if list(recorded) == list(real) or not others or not others.keys() <= mine.keys():
        return False
    for kind, values in mine.items():
        waiting = others.get(kind, [])[::-1]
        for value in values:
            if waiting and identical(value, waiting[-1]):
                waiting.pop()
            elif isinstance(value, torch.Tensor) and kind.rpartition(".")[2] not in _READS:
                return False
        if waiting:
            return False
    return True


def _by_kind(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in values.items():
        found.setdefault(without_counter(name), []).append(value)
    return found
