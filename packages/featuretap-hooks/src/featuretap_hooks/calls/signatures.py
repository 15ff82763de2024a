"""The arguments of a forward: a method that shows those of another, and calls with each named."""

from __future__ import annotations

import inspect
import types
from collections.abc import Collection, Mapping
from typing import Any

from ..recorder import Recorder

__all__ = ["Arguments", "with_signature"]

# An argument with such a default chooses a branch.
_FIXED_DEFAULTS = (type(None), bool, str)
_COLLECTED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def with_signature(plain: Any, owner: object, signature: inspect.Signature) -> Any:
    """Make a ``forward`` of ``owner`` that does what ``plain`` does and shows these arguments."""
    # Dynamo gives up on code that it compiled for too many callers, so each owner has its own.
    function = types.FunctionType(plain.__code__.replace(), plain.__globals__, "forward")
    function.__doc__ = plain.__doc__
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters) or "self" not in signature.parameters:
        function.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    return types.MethodType(function, owner)


class Arguments:
    """The arguments of a forward, as a recorder names and marks them.

    Args:
        signature: that of the forward, without ``self``.
        concrete: the arguments that the user has fixed.

    """

    def __init__(self, signature: inspect.Signature, concrete: Collection[str] = ()) -> None:
        self._signature = signature
        parameters = signature.parameters.values()
        self._named = [p.name for p in parameters if p.kind not in _COLLECTED]
        self._fixed = [
            p.name
            for p in parameters
            if isinstance(p.default, _FIXED_DEFAULTS) or p.name in concrete
        ]
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._is_usual = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)

    def watched(
        self, recorder: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Name the arguments of a call and return them marked."""
        given = dict(zip(self._named, args, strict=False))
        complete = {**self._defaults, **given}
        is_usual = self._is_usual and not kwargs and len(args) <= len(self._named)
        if not is_usual or len(complete) < len(self._named):
            return self._bound(recorder, args, kwargs)
        watched = recorder.inputs({name: complete[name] for name in self._named}, self._fixed)
        return tuple(watched[name] for name in given), kwargs

    def _bound(
        self, recorder: Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        bound = self._signature.bind(*args, **kwargs)
        complete = inspect.BoundArguments(self._signature, bound.arguments.copy())
        complete.apply_defaults()
        named = {name: complete.arguments[name] for name in self._named}
        watched = recorder.inputs(named, self._fixed)
        for name, value in bound.arguments.items():
            if name in watched:
                bound.arguments[name] = watched[name]
            else:
                recorder.mark(value)
        return bound.args, bound.kwargs
