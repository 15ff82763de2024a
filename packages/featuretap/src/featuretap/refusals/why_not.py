"""Why a module cannot be looked into, and why an operation must not become a node of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..inspecting.catching import catches_in_exit
from ..inspecting.containers import contains
from ..inspecting.trace_left import fills_what_it_is_given, is_of_a_library
from ..keeping.put_back import is_own_hook
from ..standins.asking import Questions

__all__ = ["CATCHES", "GIVEN_MODULE", "why_not_look_into", "why_not_record"]

# The attribute in which a class of modules says that it cannot be traced, and why.
_NOT_TRACED = "_not_traced"

CATCHES = "the forward catches exceptions, which real tensors may raise"
GIVEN_MODULE = (
    "a module is given to a function that is one node, "
    "and a graph would not see what that does with it"
)
_PATTERN = "its forward matches a pattern of items, to which a stand-in answers always alike"
_FILLS = (
    "a list or dict is given to {}, which is one node and fills it: the graph would not see that"
)
_SWITCHES = "the forward switches gradients on or off by a value that is not known when tracing"


def why_not_look_into(module: nn.Module, asks: Questions) -> str | None:
    """Name the reason why ``module`` must be run as a whole, if there is one.

    Args:
        module: the module.
        asks: what its forward may ask.

    """
    name = type(module).__name__
    if isinstance(reason := vars(type(module)).get(_NOT_TRACED), str):
        return reason
    for registry in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        hooks = vars(module).get(registry)
        if hooks and not all(map(is_own_hook, list(hooks.values()))):
            return f"{name} has hooks, which must run with real tensors"
    if isinstance(module, torch.jit.ScriptModule):
        return f"{name} is compiled by TorchScript"
    if asks.catches or (asks.enters and catches_in_exit(module)):
        return f"the forward of {name} catches exceptions, which real tensors may raise"
    if asks.limits:
        return f"the forward of {name} asks for the limits of dtypes by a name of its own"
    if asks.tells_apart:
        return f"the forward of {name} asks for what tells a stand-in of torch.fx from a tensor"
    if asks.matches:
        return _PATTERN
    return None


_NOT_OF_A_GRAPH = {
    "backward": "the forward calls backward(), which a graph would not do",
    "numpy": "the forward leaves torch for NumPy, where a graph does not follow",
}


# Of what a stand-in may stand for: a tensor, a size, a tuple or another container.
_METHODS = frozenset(
    name
    for kind in (torch.Tensor, torch.Size, tuple, list, dict, int, float, str)
    for name in dir(kind)
)


def why_not_record(
    kind: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Name the reason why an operation must not become a node, if there is one.

    Args:
        kind: as in ``torch.fx.Node.op``.
        target: the module, the function, or the name of the method.
        args: its arguments, as in a graph.
        kwargs: its keyword arguments.

    """
    if kind == "call_method":
        if target in _NOT_OF_A_GRAPH:
            return _NOT_OF_A_GRAPH[target]
        if target not in _METHODS:
            return f"the forward calls .{target}() of an object that only the real forward knows"
        if target == "requires_grad_" and args[0].op == "get_attr":
            return "the forward freezes or unfreezes what the model keeps"
    elif kind == "call_module":
        if not is_of_a_library(type(target)):
            return _why_not_call(target, type(target).__name__, args, kwargs)
    elif kind == "call_function":
        name = getattr(target, "__name__", "")
        if name == "_set_grad_enabled":
            return _SWITCHES
        if not is_of_a_library(target):
            return _why_not_call(target, name, args, kwargs)
    return None


def _why_not_call(
    target: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    is_filled = fills_what_it_is_given(target) and contains((list, dict), args, *kwargs.values())
    return _FILLS.format(name) if is_filled else None
