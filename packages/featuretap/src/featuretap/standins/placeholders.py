"""What stands for the arguments of the model while it is traced."""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..events import FixedArgument
from ..inspecting.reading import forward_of
from ..recording import Recording
from .identity import may_ask_identity

if TYPE_CHECKING:
    from ..tracing import FeatureTracer

__all__ = ["root_arguments"]

_FIXED_DEFAULTS = (
    *(type(None), bool, str, enum.Enum),
    *(types.FunctionType, types.BuiltinFunctionType),  # ``activation=torch.tanh``
)
# Mostly handed on to torch, which may be done with a stand-in, and seldom compared.
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def root_arguments(
    tracer: FeatureTracer, signature: inspect.Signature, concrete: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments to call the model with.

    An argument whose default is ``None``, a flag, a string, a member of an ``Enum`` or a function
    chooses a branch, so it is fixed to its default: a stand-in would always take the other branch. So is
    a dtype where the forward asks ``is`` of anything. The others are placeholders, and so are those that
    default to ``None`` where nothing else would be an input, if the user has named what is fixed.
    """
    recording = tracer.recording
    asks = may_ask_identity(forward_of(tracer.root))
    fixed: tuple[type, ...] = (*_FIXED_DEFAULTS, *(_CONSTANTS if asks else ()))
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise tracer.refusal(f"the forward takes any number of arguments, *{name}")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    # What further keyword arguments there are is taken to be none, which each call checks.
    named = {n: p for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    if concrete and all(n in concrete or isinstance(p.default, fixed) for n, p in named.items()):
        fixed = tuple(kind for kind in fixed if kind is not type(None))
    for name, parameter in named.items():
        if name in concrete or isinstance(parameter.default, fixed):
            value = concrete.get(name, parameter.default)
            recording.fixed_arguments[name] = value
            recording.events.append(FixedArgument(name, value))
        else:
            # A tensor as default is in the signature; in the graph it would be a node of its own.
            known = not isinstance(parameter.default, (type, torch.Tensor))
            default = (parameter.default,) if known else ()
            value = tracer.create_proxy("placeholder", name, default, {})
            recording.placeholders[name] = value.node
        if parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[name] = value
        else:
            args.append(value)
    if not recording.placeholders and not concrete and None in recording.fixed_arguments.values():
        raise tracer.refusal(
            f"each argument has a default, and is taken to be that ({_shown(recording)}), so that there "
            "is no input; name in concrete_args those that are fixed: the others that default to None "
            "are inputs then"
        )
    return args, kwargs


def _shown(recording: Recording) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in recording.fixed_arguments.items())
