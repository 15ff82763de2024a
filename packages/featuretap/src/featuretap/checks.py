"""What the source of an extractor calls to refuse what its graphs cannot serve."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from .comparing import identical
from .errors import NodeNotFoundError

__all__ = ["check_empty", "check_fixed", "mode_missing"]

_SIMPLE = (type(None), bool, int, float, str)


def check_fixed(name: str, given: Any, fixed: Any) -> None:
    """Refuse an argument that differs from the value it had when the model was traced."""
    if given is fixed:
        return
    if type(given) is type(fixed) and (
        given == fixed if isinstance(fixed, _SIMPLE) else identical(given, fixed)
    ):
        return
    raise ValueError(
        f"this extractor was made for {name}={_shown(fixed)} and cannot serve {name}={_shown(given)}: "
        f"the branches of the forward that {name} chooses were fixed when the model was traced. Create "
        f"another extractor with concrete_args={{{name!r}: ...}}, or use backend='hooks'"
    )


def check_empty(name: str, given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the model takes beyond those it names."""
    if given:
        raise ValueError(
            f"this extractor was made without further keyword arguments (**{name}) and cannot serve "
            f"{', '.join(given)}: what the forward does with them was not there to be traced. Use "
            "backend='hooks'"
        )


def mode_missing(why: str) -> None:
    """Say that a request has no nodes in the mode that the extractor is in."""
    raise NodeNotFoundError(why)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return reprlib.repr(value)
