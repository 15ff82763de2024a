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
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from .. import _compat
from ..inspecting.catching import catches
from ..inspecting.containers import contains
from ..inspecting.reading import Forward, names_in
from ..inspecting.whose import called_by_model, is_our_module, is_ours, runs_users_code
from ..standins.asking import LIMITS
from ..trace.replaced import Replacement, attributes_replaced
from .why_not import CATCHES

__all__ = ["refused_functions"]

# The class of the managers that ``contextlib.contextmanager`` makes of generators.
_MANAGER = type(contextlib.contextmanager(iter)(()))
_LOSES_BACKWARD = "the backward of the autograd.Function {} would be lost"
_ASKS_LIMITS = (
    "the forward asks torch.{}() for the limits of a dtype that is not known when tracing"
)
_ASKS = "the forward asks {}(), and the answer of the trace would hold for every call"
_SETS = "the forward calls {}(), which would not be called again"
_CHOOSES = "the forward chooses kernels ({}), which would not be chosen again"
_SWAPS = "the forward swaps tensors ({}), which no graph can do"
_HOOKS = (
    "the forward enters hooks for tensors that are saved for backward, which a graph would lose"
)
_MODE = "the forward enters a mode of its own, which would see stand-ins now and nothing later"
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


@contextlib.contextmanager
def refused_functions(refuse: Refuse, forwards: Collection[Forward]) -> Iterator[None]:
    """While entered, calls of this thread that a graph would lose raise what ``refuse(reason)`` makes.

    Args:
        refuse: makes the error.
        forwards: what may run; ``torch.finfo`` is another only where some name it.

    """
    named = {name for forward in forwards for name in names_in(forward) & LIMITS}
    limits = [(torch, name, _limits) for name in named]
    bound = [(made, "__init__", _MADE) for made in _bindable(_compat.contexts())]
    thread = threading.get_ident()
    outer = _REFUSING.get(thread)
    try:
        _REFUSING[thread] = refuse
        with attributes_replaced((*_lost_calls(), *limits, *bound)):
            yield
    finally:
        if outer is None:
            _REFUSING.pop(thread, None)
        else:
            _REFUSING[thread] = outer


# The threads that trace -> what makes the error.
_REFUSING: dict[int, Refuse] = {}


@functools.cache
def _lost_calls() -> list[Replacement]:
    """Return owner and name of each function, and what makes the one that stands for it."""
    swaps, settings = _compat.SWAPS_TENSORS, _compat.settings_of_kernels()
    asked = ((torch, _STATE), (torch.random, _STATE))
    return [
        (torch.autograd.Function, "apply", _apply),
        (torch.jit, "isinstance", _refused(_why_not_of_kind)),
        *((owner, name, _for(reason, called_by_model)) for owner, name, reason in _ENTERED),
        *(
            (mode, "__enter__", _refused(_why_not_mode))
            for mode in (TorchFunctionMode, _compat.TorchDispatchMode)
        ),
        (contextlib.suppress, "__enter__", _for(CATCHES, runs_users_code)),
        (_MANAGER, "__enter__", _refused(_why_not_manager)),
        *((torch._C, name, _for(_CHOOSES, _by_anyone)) for name in settings),
        *((torch._C, name, _for(_SWAPS, _by_anyone)) for name in swaps),
        *(
            (owner, name, _for(reason, called_by_model))
            for owner, reasons in asked
            for name, reason in reasons.items()
            if name in vars(owner)
        ),
    ]


@functools.lru_cache(maxsize=1)
def _bindable(contexts: tuple[type, ...]) -> tuple[type, ...]:
    """Return the contexts of those functions whose ``apply`` the model's code may have bound before.

    Only these: to patch the class of them all would have Python go through all of its subclasses.
    """
    functions = ((_compat.function_of(context), context) for context in contexts)
    return tuple(
        context
        for function, context in functions
        if not is_our_module(function.__module__) or function is CheckpointFunction
    )


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


def _why_not_backward(frame: types.FrameType, _: Any, context: Any) -> str | None:
    """Say why not, of what ``apply`` calls first: one that was bound before, as an attribute, stays."""
    kind = _compat.function_of(type(context))
    if frame.f_code.co_name == "apply" and frame.f_back is not None:
        frame = frame.f_back  # until torch 2.8 at least it was written in Python
    is_models = called_by_model(frame) and not _compat.is_bookkeeping_of_checkpoints(kind)
    return _LOSES_BACKWARD.format(kind.__name__) if is_models else None


def _why_not_of_kind(_frame: types.FrameType, _: Any, value: Any, _kind: Any) -> str | None:
    """Say why not, of ``torch.jit.isinstance``, which looks at stand-ins themselves."""
    return _ASKS.format("torch.jit.isinstance") if contains(fx.Proxy, value) else None


def _why_not_mode(_frame: types.FrameType, _: Any, mode: Any) -> str | None:
    return None if is_our_module(type(mode).__module__) else _MODE


def _why_not_manager(_frame: types.FrameType, _: Any, manager: Any) -> str | None:
    generator = manager.gen
    is_users = not is_ours(generator.gi_frame.f_globals)
    return CATCHES if is_users and catches(generator.gi_code) else None


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


def _refused(why: Callable[..., str | None]) -> Callable[[Any], Any]:
    """Return what makes the stand-in of a function; ``why(frame, function, *args)`` is asked in a trace."""

    @functools.lru_cache(maxsize=64)
    def stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            refuse = _REFUSING.get(threading.get_ident())
            reason = (
                why(sys._getframe(1), function, *args, **kwargs) if refuse is not None else None
            )
            if refuse is not None and reason is not None:
                raise refuse(reason)
            return function(*args, **kwargs)

        return refused

    return stand_in


def _for(reason: str, matters: Callable[[types.FrameType], bool]) -> Callable[[Any], Any]:
    """Return what makes the stand-in of a function that is refused where the frame ``matters``."""

    def why(frame: types.FrameType, function: Any, *_: Any, **__: Any) -> str | None:
        name = f"torch.{function.__name__.removeprefix('_set_')}"
        return reason.format(name) if matters(frame) else None

    return _refused(why)


def _by_anyone(_: types.FrameType) -> bool:
    return True


_MADE = _refused(_why_not_backward)
