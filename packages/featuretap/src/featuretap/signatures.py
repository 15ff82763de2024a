"""The arguments of a model: what a call takes, what was fixed, and what a call leaves out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

__all__ = [
    "check_argument_names",
    "has_own_call",
    "positions_of",
    "signature_of",
    "with_defaults",
    "with_fixed",
]

_PASSED_ON = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_AFTER_POSITIONAL = (_KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


def has_own_call(module: nn.Module) -> bool:
    """Say whether a call of ``module`` is more than torch makes it: its class has a ``__call__``."""
    return type(module).__call__ is not nn.Module.__call__


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return what a call of ``model`` takes.

    That is what its ``forward`` takes, also a traced one, which is no Python function, or its own
    ``__call__``, where that does not just pass on what it is given.
    """
    if has_own_call(model):
        called = inspect.signature(functools.partial(type(model).__call__, model))
        if {parameter.kind for parameter in called.parameters.values()} != _PASSED_ON:
            return called
    own: Any = inspect.getattr_static(model, "forward", None)
    if isinstance(own, functools.singledispatchmethod):
        # Of the method that this makes, Python says that it takes ``self``.
        return inspect.signature(functools.partial(own.func, model))
    try:
        return inspect.signature(model.forward)
    except ValueError:
        schema: Any = getattr(model.forward, "schema", None)
        if schema is None:
            raise
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [argument.name for argument in schema.arguments[1:]]
        return inspect.Signature([inspect.Parameter(name, kind) for name in names])


def check_argument_names(signature: inspect.Signature, concrete: Mapping[str, Any]) -> None:
    """Refuse fixed values for arguments that do not exist."""
    for name in concrete:
        if name not in signature.parameters:
            raise ValueError(
                f"concrete_args names {name!r}, which is no argument of the model's forward; "
                f"it takes {', '.join(map(repr, signature.parameters))}"
            )


class Position(NamedTuple):
    """The place of an argument in a call, and whether that is the only way to give it."""

    place: int
    is_only_way: bool


def positions_of(signature: inspect.Signature) -> dict[str, Position]:
    """Return the place of each argument that a call may give by its place."""
    only = inspect.Parameter.POSITIONAL_ONLY
    kinds = (only, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = enumerate(signature.parameters.values())
    return {p.name: Position(place, p.kind is only) for place, p in places if p.kind in kinds}


def with_fixed(
    concrete: Mapping[str, Any],
    positions: Mapping[str, Position],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, with the fixed ones that the call does not give."""
    given = {name for name, position in positions.items() if position.place < len(args)}
    fixed = {name: value for name, value in concrete.items() if name not in given}
    for name in positions:  # in their order
        if name in fixed and positions[name] == (len(args), True):
            args = (*args, fixed.pop(name))
    return args, {**fixed, **kwargs}


def with_defaults(signature: inspect.Signature, values: Mapping[str, Any]) -> inspect.Signature:
    """Return a signature in which the arguments that have fixed ``values`` may be left out.

    Without annotations, which may name types that cannot be pickled.
    """
    parameters: list[inspect.Parameter] = []
    may_have_default = True
    for parameter in reversed(list(signature.parameters.values())):
        default = parameter.default
        if parameter.name in values and (may_have_default or parameter.kind is _KEYWORD_ONLY):
            default = values[parameter.name]
        if default is parameter.empty and parameter.kind not in _AFTER_POSITIONAL:
            may_have_default = False
        parameters.insert(0, parameter.replace(annotation=parameter.empty, default=default))
    return inspect.Signature(parameters)
