"""Checks in front of a graph: of the arguments of a call, and of an example before there is an extractor.

The source of an extractor calls some of them by name, see :mod:`.graphs.codegen`.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from ..comparing import identical
from ..errors import NodeNotFoundError, UntraceableModelError

__all__ = ["check_empty", "check_example", "check_fixed", "mode_missing"]

_SIMPLE = (type(None), bool, int, float, str)


def check_fixed(name: str, given: Any, fixed: Any) -> None:
    """Refuse an argument that differs from the value it had when the model was traced."""
    if _is_as_fixed(given, fixed):
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


def check_example(
    signature: inspect.Signature,
    fixed: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Refuse the arguments of an example that an extractor would refuse of a call.

    Raises:
        UntraceableModelError: so that another backend may serve them.

    """
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return  # the forward itself says so
    for name, value in given.items():
        if name in fixed and not _is_as_fixed(value, fixed[name]):
            raise UntraceableModelError(
                f"fx records the forward for {name}={_shown(fixed[name])}, and the example inputs have "
                f"{name}={_shown(value)}: the branches that {name} chooses are fixed when the model is "
                f"traced. Ways out: concrete_args={{{name!r}: ...}}, or backend='hooks' of "
                "featuretap-hooks, which watches the real forward"
            )
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise UntraceableModelError(
                f"fx records the forward without further keyword arguments (**{name}), and the example "
                f"inputs have {', '.join(value)}. Ways out: backend='hooks' of featuretap-hooks, which "
                "watches the real forward"
            )


def mode_missing(why: str) -> None:
    """Say that a request has no nodes in the mode that the extractor is in."""
    raise NodeNotFoundError(why)


def _is_as_fixed(given: Any, fixed: Any) -> bool:
    if given is fixed or type(given) is not type(fixed):
        return given is fixed
    return bool(given == fixed) if isinstance(fixed, _SIMPLE) else identical(given, fixed)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return reprlib.repr(value)
