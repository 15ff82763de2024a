"""How a forward asks what kind of object a value is, and what a stand-in must answer to.

For ``isinstance``, ``torch.is_tensor``, a class pattern of ``match`` and ``x.__class__``, Python reads
``__class__`` of the stand-in. For ``type(x)`` and ``callable(x)`` it reads nothing that a stand-in
could answer; so while a trace runs, code of the model finds others under these two names (see
:mod:`.asked_types`).
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _compat
from ..inspecting.calls_in_code import called_at
from ..inspecting.catching import catches, enters
from ..inspecting.looking import is_a
from ..inspecting.reading import (
    Forward,
    codes_in,
    functions_of,
    instructions_of,
    names_in,
    names_of_code,
)
from ..inspecting.remembering import by_code, by_forward
from ..inspecting.whose import is_ours, is_users
from ..keeping.held import parts_of
from .asked_types import AskedPlace
from .identity import may_ask_identity

__all__ = [
    "ASKS_FOR_MODES",
    "LIMITS",
    "RESIZES",
    "asked_in_held",
    "is_unclear",
    "mentions_legacy_types",
    "questions_of",
    "who_asks",
]

# ``torch.FloatTensor`` and its like; C code that takes whatever is a Tensor for one in memory.
_LEGACY = type(torch.FloatTensor)
_PASSES_ON = frozenset({"is_tensor", "__instancecheck__"})
# They ask, or go through what asks: ``any(map(isinstance, ...))``.
_ASK = (isinstance, any, all, next, map, filter, zip, list, tuple, set, frozenset, dict, sorted)
_GO_THROUGH = ("FOR_ITER", "UNPACK_", "LIST_EXTEND", "SET_UPDATE")
_PATTERNS_OF_ITEMS = frozenset({"MATCH_SEQUENCE", "MATCH_MAPPING"})
LIMITS = frozenset({"finfo", "iinfo"})
_ASK_NOTHING = frozenset({type(None), bool, int, float, str})
_TABLES = (dict, list, tuple)
_SMALL = 100
# What tells a stand-in of torch.fx from a tensor, and the attributes that only one has.
_TELLS_APART = frozenset(
    "has_torch_function has_torch_function_unary has_torch_function_variadic is_fx_tracing "
    "is_fx_symbolic_tracing Proxy _len_torch_function_stack _is_torch_function_mode_enabled".split()
)
#: They say that somebody watches, to whoever asks.
ASKS_FOR_MODES: dict[str, Any] = {
    name: function
    for name, function in vars(torch.overrides).items()
    if name.startswith("has_torch_function")
}
_OF_STAND_INS = frozenset({"node", "tracer"})
# Ways to give a tensor other memory, which torch shows to nobody.
RESIZES = frozenset("resize_ resize_as_ set_".split())


def who_asks(frame: types.FrameType) -> types.FrameType | None:
    """Return the frame of the model's code that asks for the type of an object just now.

    ``None`` if torch's own code does; its argument parser looks at stand-ins, too, on behalf of the
    frame that calls it.

    Args:
        frame: where ``__class__`` is read.

    """
    is_passed_on = False
    # Torch's own code asks often, and gets away soon.
    while frame.f_code.co_name in _PASSES_ON and frame.f_back is not None:
        frame, is_passed_on = frame.f_back, True
    if is_ours(frame.f_globals) and not frame.f_globals["__name__"].startswith(
        _compat.ASKS_FOR_USERS
    ):
        return None
    return frame if is_passed_on or _asks(frame) else None


def _asks(frame: types.FrameType) -> bool:
    if _asks_by_itself(frame.f_code, frame.f_lasti):
        return True
    names, known = frame.f_code.co_names, frame.f_globals
    if "isinstance" not in names and all(known.get(name) is not isinstance for name in names):
        return False
    called = called_at(frame)
    if not called.is_call:
        return called.instruction.startswith(
            _GO_THROUGH
        )  # an iterator, as of ``map(isinstance, ...)``
    # Torch looks at its arguments as well, and a stand-in that seems to be a tensor it takes for one:
    # the process dies.
    if called.value is None:
        return called.name in ("isinstance", "")
    return any(called.value is function for function in _ASK)


def is_unclear(frame: types.FrameType) -> bool:
    """Say whether nobody knows if it is ``frame`` that asks, or torch: what it calls has no name."""
    called = called_at(frame)
    return called.is_call and not called.name


def mentions_legacy_types(frame: types.FrameType) -> bool:
    """Say whether ``frame`` knows a type such as ``torch.FloatTensor``, which no stand-in may meet."""
    code = frame.f_code
    spaces = (frame.f_locals, frame.f_globals, vars(torch), vars(torch.cuda))
    names = {*code.co_names, *code.co_varnames, *code.co_freevars}
    for value in (space.get(name) for space in spaces for name in names):
        items = value if isinstance(value, (tuple, list)) else (value,)
        if any(type(item) is _LEGACY for item in items):
            return True
    return False


@by_code
def _asks_by_itself(code: types.CodeType, offset: int) -> bool:
    found = next(i for i in dis.get_instructions(code) if i.offset >= offset)
    return found.opname == "MATCH_CLASS" or found.argval == "__class__"


class Questions(NamedTuple):
    """What a forward, or what it calls by name, may ask or do that needs care.

    Attributes:
        identity: whether anything is compared with ``is``.
        resizes: whether a tensor may be given other memory.
        matches: whether something is matched with a pattern of items, which no stand-in has.
        code: its own code; ``None`` if it is not Python's.
        catches: whether that goes on after an error.
        enters: whether a context manager is entered.
        limits: whether the limits of a dtype are asked for by a name of the user's own.
        tells_apart: whether it is asked for what tells a stand-in from a tensor.
        types: where ``type`` and ``callable`` are looked up.

    """

    identity: bool = False
    resizes: bool = False
    matches: bool = False
    code: types.CodeType | None = None
    catches: bool = False
    enters: bool = False
    limits: bool = False
    tells_apart: bool = False
    types: tuple[AskedPlace, ...] = ()


@by_forward
def questions_of(forward: Forward) -> Questions:
    """Read the code of a forward."""
    code = getattr(forward.function, "__code__", None)
    return Questions(
        identity=may_ask_identity(forward),
        resizes=not RESIZES.isdisjoint(names_in(forward)),
        matches=any(i.opname in _PATTERNS_OF_ITEMS for i in instructions_of(forward)),
        code=code,
        catches=code is not None and catches(code),
        enters=enters(forward),
        limits=any(not LIMITS.isdisjoint(f.__globals__) for f in functions_of(forward))
        and not LIMITS.isdisjoint(names_in(forward)),
        tells_apart=_tells_apart(forward),
        types=_asked_in(forward),
    )


def _tells_apart(forward: Forward) -> bool:
    for function in functions_of(forward):
        if is_ours(function.__globals__):
            continue
        names = names_of_code(function.__code__)
        asks_for_attributes = not names.isdisjoint({"hasattr", "getattr"})
        held = map(function.__globals__.get, names)
        if any(any(value is asked for asked in ASKS_FOR_MODES.values()) for value in held):
            return True
        texts = {text for part in codes_in(function.__code__) for text in part.co_consts}
        if names & _TELLS_APART or (asks_for_attributes and texts & _OF_STAND_INS):
            return True
    return False


def asked_in_held(module: nn.Module, forward: Forward) -> Iterator[AskedPlace]:
    """Yield where code looks ``type`` and ``callable`` up that ``forward`` may find on its module."""
    named, held = _named_by_users(forward), vars(module)
    for name in named.intersection(held):
        if type(held[name]) not in _ASK_NOTHING:
            yield from _asked_by(held[name], named)


@by_forward
def _named_by_users(forward: Forward) -> frozenset[str]:
    return names_in(forward) if is_users(forward.kind) else frozenset()


def _asked_in(forward: Forward) -> tuple[AskedPlace, ...]:
    found = list(_asked_by_name(forward))
    for function in functions_of(forward):
        for table in map(function.__globals__.get, names_of_code(function.__code__)):
            if type(table) in _TABLES and not is_ours(function.__globals__):
                found += _asked_by(table, names_in(forward))
    return tuple(found)


@by_forward
def _asked_by_name(forward: Forward) -> tuple[AskedPlace, ...]:
    """Return the places without those in tables, which may hold a function that looks into them."""
    found: list[AskedPlace] = []
    for function in functions_of(forward):
        if not is_ours(function.__globals__):
            names = names_of_code(function.__code__)
            found += [(function.__globals__, name) for name in names & {"type", "callable"}]
            if any(name in _compat.TREES and "tree_" in name for name in names):
                found.append((_compat.TREES, "type"))
    return tuple(found)


def _asked_by(value: Any, named: frozenset[str]) -> Iterator[AskedPlace]:
    """Yield the same of what a function, a table, or an object of the user's may run.

    Args:
        value: any object.
        named: what the forward mentions, the methods that it may call among it.

    """
    if is_a(value, functools.partial):
        value = value.func
    if is_a(value, types.MethodType):
        value = value.__func__
    if type(value) in _TABLES:
        items = parts_of(value)
        for item in items if len(items) <= _SMALL else ():
            if type(item) not in _TABLES:
                yield from _asked_by(item, named)
    elif is_a(value, types.FunctionType):
        yield from _asked_by_name(Forward(object, value))
    elif is_users(type(value)) and not is_a(value, nn.Module):
        kind: Any = type(value)
        for function in _methods(kind, named):
            yield from _asked_by_name(Forward(kind, function))


@functools.lru_cache(maxsize=1024)
def _methods(kind: Any, named: frozenset[str]) -> tuple[types.FunctionType, ...]:
    spaces = [vars(base) for base in kind.__mro__ if is_users(base)]
    values = (
        getattr(value, "__func__", value)
        for space in spaces
        for name, value in space.items()
        if name in named or name.startswith("__")
    )
    return tuple(value for value in values if isinstance(value, types.FunctionType))
