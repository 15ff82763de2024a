"""What a forward that was watched has shown, in terms that compiled code understands too.

There an operation is told by its place, the n-th counted torch function in its scope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from featuretap.trace.indexing import is_method

__all__ = ["Places", "Program", "counts", "is_same", "name_of_function"]

# node name -> the scope it is in, and how many counted torch functions were there before it.
Places = dict[str, tuple[str, int]]


@dataclass
class Program:
    """What a compiled forward keeps, in terms that dynamo understands.

    Attributes:
        keys: node name -> output keys.
        outputs: path of a module -> number of a call of it -> node name.
        wanted: scope and number -> node name.
        functions: scope -> the names of its counted torch functions.
        inputs: node name -> index and name of an argument.
        stop: whether the forward ends when everything is there.
        retained: node names whose memory the model may keep, so that the next forward may write it.
        calls_itself: whether the model has a ``__call__`` of its own, which counts as its forward.
        problem: why it cannot be compiled, if it cannot.

    """

    keys: Mapping[str, list[str]] = field(default_factory=dict)
    outputs: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    wanted: dict[tuple[str, int], str] = field(default_factory=dict)
    functions: Mapping[str, list[str]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, str]] = field(default_factory=dict)
    stop: bool = True
    retained: tuple[str, ...] = ()
    calls_itself: bool = False
    problem: str = ""


# What dynamo calls ``y += x`` and its like in some places.
_AUGMENTED = {
    "iadd": "add_",
    "isub": "sub_",
    "imul": "mul_",
    "itruediv": "div_",
    "__iadd__": "add_",
    "__isub__": "sub_",
    "__imul__": "mul_",
    "__idiv__": "div_",
}


def counts(func: Callable[..., Any], value: Any) -> bool:
    """Say whether a call is counted: one that eager and compiled code show alike."""
    if getattr(func, "__name__", "") in ("__get__", "__set__", "__setitem__"):
        return False
    first = value[0] if isinstance(value, (tuple, list)) and len(value) else value
    return isinstance(first, torch.Tensor)


def name_of_function(func: Callable[..., Any]) -> str:
    """Return what an operation is called, to be known again in compiled code.

    Dynamo does not show ``torch.relu_(x)`` and its like, which must not be taken for ``x.relu_()``.
    """
    name: str = getattr(func, "__name__", "")
    is_hidden = name.endswith("_") and not name.endswith("__") and not is_method(func)
    return f"torch.{name}" if is_hidden else name


def is_same(known: str, name: str) -> bool:
    """Say whether dynamo calls by ``name`` what is called ``known`` otherwise."""
    if name == "wrapped":
        return known.startswith("__") or known == "pow"
    return known in (name, _AUGMENTED.get(name))
