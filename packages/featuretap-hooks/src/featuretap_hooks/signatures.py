"""A method that shows the signature of another."""

from __future__ import annotations

import inspect
import types
from typing import Any

__all__ = ["with_signature"]


def with_signature(plain: Any, owner: object, signature: inspect.Signature) -> Any:
    """Make a ``forward`` of ``owner`` that does what ``plain`` does and shows these arguments."""
    function = types.FunctionType(plain.__code__, plain.__globals__, "forward")
    function.__doc__ = plain.__doc__
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters) or "self" not in signature.parameters:
        function.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    return types.MethodType(function, owner)
