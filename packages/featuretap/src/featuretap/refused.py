"""Functions whose effect a graph would lose, so that a forward which calls them is refused.

The backward of a custom ``torch.autograd.Function`` would be lost: ``apply`` runs the forward under
``no_grad`` and ties the backward to it in C++, where a trace cannot follow. Reentrant checkpointing is
such a function too, and so are hooks for what is saved for the backward. A question about torch's
global state would be answered once and for all, and what sets that state would be over when the trace
is.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from . import _compat
from .asking import LIMITS, Questions
from .catching import catches, catches_in_exit
from .faithful import contains
from .likeness import is_tuple
from .put_back import is_own_hook
from .reading import Forward, is_our_module, is_ours, names_in, runs_users_code
from .trace_left import fills_what_it_is_given, is_of_a_library

__all__ = [
    "CATCHES",
    "called_by_model",
    "refused_functions",
    "why_not_look_into",
    "why_not_record",
]

CATCHES = "the forward catches exceptions, which real tensors may raise"
_INHERITED = object()
_LOSES_BACKWARD = "the backward of the autograd.Function {} would be lost"
_ASKS_LIMITS = (
    "the forward asks torch.{}() for the limits of a dtype that is not known when tracing"
)
_ASKS = "the forward asks {}(), and the answer of the trace would hold for every call"
_SETS = "the forward calls {}(), which would not be called again"
_CHOOSES = "the forward chooses kernels ({}), which would not be chosen again"
_SWAPS = "the forward swaps tensors ({}), which no graph can do"
_PATTERN = "its forward matches a pattern of items, to which a stand-in answers always alike"
_HOOKS = (
    "the forward enters hooks for tensors that are saved for backward, which a graph would lose"
)
_MODE = "the forward enters a mode of its own, which would see stand-ins now and nothing later"
_FILLS = (
    "a list or dict is given to {}, which is one node and fills it: the graph would not see that"
)
_SWITCHES = "the forward switches gradients on or off by a value that is not known when tracing"
_REPEATS = "the forward multiplies a tuple, as tree_map does that takes a stand-in for no tuple"
_CACHED = "the forward caches parametrizations, which a graph would compute at each use"
_STATE = {
    "is_grad_enabled": _ASKS,
    "is_inference_mode_enabled": _ASKS,
    "is_autocast_enabled": _ASKS,
    "get_autocast_dtype": _ASKS,
    "get_autocast_cpu_dtype": _ASKS,
    "get_autocast_gpu_dtype": _ASKS,
    "get_default_dtype": _ASKS,
    "get_rng_state": _ASKS,
    "initial_seed": _ASKS,
    "are_deterministic_algorithms_enabled": _ASKS,
    "manual_seed": _SETS,
    "seed": _SETS,
    "set_rng_state": _SETS,
    "fork_rng": _SETS,
    "set_default_dtype": _SETS,
}
_ENTERED = (
    (torch.autograd.graph.saved_tensors_hooks, "__enter__", _HOOKS),
    (parametrize, "cached", _CACHED),
)

Refuse = Callable[[str], Exception]
# The owner and the name of a function, and what makes the one that stands for it.
_Lost = tuple[Any, str, Callable[[Any], Any]]


def called_by_model(frame: types.FrameType) -> bool:
    """Say whether ``frame`` runs the user's code, and not torch's or ours."""
    return not is_ours(frame.f_globals)


@contextlib.contextmanager
def refused_functions(refuse: Refuse, forwards: Collection[Forward]) -> Iterator[None]:
    """While entered, calls of this thread that a graph would lose raise what ``refuse(reason)`` makes.

    Args:
        refuse: makes the error.
        forwards: what may run; ``torch.finfo`` is another only where some name it.

    """
    patched: list[tuple[Any, str, Any]] = []
    thread = threading.get_ident()
    outer = _REFUSING.get(thread)
    _REFUSING[thread] = refuse
    try:
        named = {name for forward in forwards for name in names_in(forward) & LIMITS}
        limits: list[_Lost] = [(torch, name, _limits) for name in named]
        for owner, name, refused in (*_lost_calls(), *limits):
            own = vars(owner).get(name, _INHERITED)
            patched.append((owner, name, own))
            setattr(owner, name, refused(getattr(owner, name) if own is _INHERITED else own))
        yield
    finally:
        for owner, name, own in reversed(patched):
            if own is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        if outer is None:
            del _REFUSING[thread]
        else:
            _REFUSING[thread] = outer


# The threads that trace -> what makes the error.
_REFUSING: dict[int, Refuse] = {}


@functools.cache
def _lost_calls() -> list[_Lost]:
    """Return owner and name of each function, and what makes the one that stands for it."""
    swaps, settings = _compat.SWAPS_TENSORS, _compat.settings_of_kernels()
    asked = ((torch, _STATE), (torch.random, _STATE))
    return [
        (torch.autograd.Function, "apply", _apply),
        (torch.autograd.function.BackwardCFunction, "__init__", _made_for_backward),
        (torch.jit, "isinstance", _is_of_kind),
        *((owner, name, _refused(reason, called_by_model)) for owner, name, reason in _ENTERED),
        *(
            (mode, "__enter__", _own_mode)
            for mode in (TorchFunctionMode, _compat.TorchDispatchMode)
        ),
        (contextlib.suppress, "__enter__", _refused(CATCHES, runs_users_code)),
        (contextlib._GeneratorContextManager, "__enter__", _generator),
        *((torch._C, name, _refused(_CHOOSES, _by_anyone)) for name in settings),
        *((torch._C, name, _refused(_SWAPS, _by_anyone)) for name in swaps),
        *(
            (owner, name, _refused(reason, called_by_model))
            for owner, reasons in asked
            for name, reason in reasons.items()
            if name in vars(owner)
        ),
    ]


def why_not_look_into(module: nn.Module, asks: Questions) -> str | None:
    """Name the reason why ``module`` must be run as a whole, if there is one.

    Args:
        module: the module.
        asks: what its forward may ask.

    """
    name = type(module).__name__
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
    if asks.matches:
        return _PATTERN
    return None


_NOT_OF_A_GRAPH = {
    "backward": "the forward calls backward(), which a graph would not do",
    "numpy": "the forward leaves torch for NumPy, where a graph does not follow",
}


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
        if target == "requires_grad_" and args[0].op == "get_attr":
            return "the forward freezes or unfreezes what the model keeps"
    elif kind == "call_module":
        if not is_of_a_library(type(target)):
            return _why_not_call(target, type(target).__name__, args, kwargs)
    elif kind == "call_function":
        name = getattr(target, "__name__", "")
        if name == "_set_grad_enabled":
            return _SWITCHES
        if name in ("mul", "imul") and any(map(is_tuple, args)):
            return _REPEATS
        if not is_of_a_library(target):
            return _why_not_call(target, name, args, kwargs)
    return None


def _why_not_call(
    target: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    is_filled = fills_what_it_is_given(target) and contains((list, dict), args, *kwargs.values())
    return _FILLS.format(name) if is_filled else None


# Each stand-in is made once, for to make them anew takes a part of the trace of a small model that shows.


@functools.lru_cache(maxsize=64)
def _apply(original: classmethod[Any, ..., Any]) -> classmethod[Any, ..., Any]:
    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if _compat.is_bookkeeping_of_checkpoints(cls):
            return args[0]
        refuse = _REFUSING.get(threading.get_ident())
        if refuse is not None and contains(fx.Proxy, args, kwargs):
            raise refuse(_LOSES_BACKWARD.format(cls.__name__))
        return original.__get__(None, cls)(*args, **kwargs)

    return classmethod(apply)


@functools.lru_cache(maxsize=64)
def _made_for_backward(make: Callable[..., None]) -> Callable[..., None]:
    """Stand for what ``apply`` calls first: one that was bound before, as an attribute, stays as it is."""

    def made(context: Any) -> None:
        refuse, frame = _REFUSING.get(threading.get_ident()), sys._getframe(1)
        kind = type(context)._forward_cls
        if frame.f_code.co_name == "apply" and frame.f_back is not None:
            frame = frame.f_back  # until torch 2.8 at least it was written in Python
        is_models = called_by_model(frame) and not _compat.is_bookkeeping_of_checkpoints(kind)
        if refuse is not None and is_models:
            raise refuse(_LOSES_BACKWARD.format(kind.__name__))
        make(context)

    return made


@functools.lru_cache(maxsize=64)
def _is_of_kind(ask: Callable[..., bool]) -> Callable[..., bool]:
    """Stand for ``torch.jit.isinstance``, which looks at stand-ins themselves."""

    def asked(value: Any, kind: Any) -> bool:
        refuse = _REFUSING.get(threading.get_ident())
        if refuse is not None and contains(fx.Proxy, value):
            raise refuse(_ASKS.format("torch.jit.isinstance"))
        return ask(value, kind)

    return asked


@functools.lru_cache(maxsize=64)
def _own_mode(enter: Callable[..., Any]) -> Callable[..., Any]:
    def entered(mode: Any) -> Any:
        refuse = _REFUSING.get(threading.get_ident())
        if refuse is not None and not is_our_module(type(mode).__module__):
            raise refuse(_MODE)
        return enter(mode)

    return entered


@functools.lru_cache(maxsize=64)
def _generator(enter: Callable[..., Any]) -> Callable[..., Any]:
    def entered(manager: Any) -> Any:
        refuse, generator = _REFUSING.get(threading.get_ident()), manager.gen
        is_users = refuse is not None and not is_ours(generator.gi_frame.f_globals)
        if refuse is not None and is_users and catches(generator.gi_code):
            raise refuse(CATCHES)
        return enter(manager)

    return entered


class _Limits(type):
    """The class of what stands for ``torch.finfo``: a library that is loaded meanwhile may keep that.

    torch takes a stand-in for a dtype, whichever, or refuses it, as its memory happens to be.
    """

    kind: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        refuse = _REFUSING.get(threading.get_ident())
        if refuse is not None and contains(fx.Proxy, args, kwargs):
            raise refuse(_ASKS_LIMITS.format(cls.__name__))
        return cls.kind(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.kind)


@functools.lru_cache(maxsize=64)
def _limits(kind: type) -> type:
    return _Limits(kind.__name__, (), {"kind": kind})


def _refused(
    reason: str, matters: Callable[[types.FrameType], bool]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    @functools.lru_cache(maxsize=64)
    def stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            refuse = _REFUSING.get(threading.get_ident())
            if refuse is not None and matters(sys._getframe(1)):
                raise refuse(reason.format(f"torch.{function.__name__.removeprefix('_set_')}"))
            return function(*args, **kwargs)

        return refused

    return stand_in


def _by_anyone(_: types.FrameType) -> bool:
    return True
