"""How a forward asks what kind of object a value is, and what a stand-in must answer to.

For ``isinstance``, ``torch.is_tensor``, a class pattern of ``match`` and ``x.__class__``, Python reads
``__class__`` of the stand-in. For ``type(x)`` and ``callable(x)`` it reads nothing that a stand-in
could answer; so while a trace runs, code of the model finds others under these two names.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx, nn

from . import _compat
from .catching import catches, enters
from .held import items_of
from .identity import may_ask_identity
from .looking import is_a
from .reading import Forward, by_code, functions_of, instructions_of, is_ours, is_users, names_in

__all__ = [
    "LIMITS",
    "RESIZES",
    "AskedTypes",
    "asked_in_held",
    "mentions_legacy_types",
    "questions_of",
    "who_asks",
]

# ``torch.FloatTensor`` and its like; C code that takes whatever is a Tensor for one in memory.
_LEGACY = type(torch.FloatTensor)
_PASSES_ON = frozenset({"is_tensor", "__instancecheck__"})
_PATTERNS_OF_ITEMS = frozenset({"MATCH_SEQUENCE", "MATCH_MAPPING"})
LIMITS = frozenset({"finfo", "iinfo"})
_ASK_NOTHING = frozenset({type(None), bool, int, float, str})
_TABLES = (dict, list, tuple)
_SMALL = 100
# A namespace, and a name in it.
_Place: TypeAlias = tuple[dict[str, Any], str]
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
    names, known = frame.f_code.co_names, frame.f_globals
    return (
        "isinstance" in names
        or any(known.get(name) is isinstance for name in names)
        or _asks_by_itself(frame.f_code, frame.f_lasti)
    )


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


class AskedTypes:
    """``type`` and ``callable`` for the code of the forwards that are traced.

    Args:
        kind_of: the type of the value that a stand-in stands for; raises where that is not certain.

    """

    def __init__(self, kind_of: Callable[[fx.Proxy], type]) -> None:
        self._kind_of = kind_of
        self._patched: list[_Place] = []

    @functools.cached_property
    def _shown(self) -> dict[str, Any]:
        return {
            "type": _Type(self._kind_of),
            "callable": _callable_for(self._kind_of),
            "type in trees": _TypeInTrees(self._kind_of),
        }

    def show_in(self, places: Iterable[_Place]) -> None:
        """Let the code that looks in these places find them."""
        for namespace, name in places:
            if name not in namespace:
                which = f"{name} in trees" if namespace is _compat.TREES else name
                namespace[name] = self._shown[which]
                self._patched.append((namespace, name))

    def restore(self) -> None:
        """Let all code find Python's own again."""
        while self._patched:
            namespace, name = self._patched.pop()
            del namespace[name]


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
        types: where ``type`` and ``callable`` are looked up.

    """

    identity: bool = False
    resizes: bool = False
    matches: bool = False
    code: types.CodeType | None = None
    catches: bool = False
    enters: bool = False
    limits: bool = False
    types: tuple[_Place, ...] = ()


@functools.lru_cache(maxsize=4096)
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
        types=_asked_in(forward),
    )


def asked_in_held(module: nn.Module, forward: Forward) -> Iterator[_Place]:
    """Yield where code looks ``type`` and ``callable`` up that ``forward`` may find on its module."""
    named, held = _named_by_users(forward), vars(module)
    for name in named.intersection(held):
        if type(held[name]) not in _ASK_NOTHING:
            yield from _asked_by(held[name], named)


@functools.lru_cache(maxsize=1024)
def _named_by_users(forward: Forward) -> frozenset[str]:
    return names_in(forward) if is_users(forward.kind) else frozenset()


def _asked_in(forward: Forward) -> tuple[_Place, ...]:
    found = list(_asked_by_name(forward))
    for function in functions_of(forward):
        for table in map(function.__globals__.get, frozenset(_names(function.__code__))):
            if type(table) in _TABLES and not is_ours(function.__globals__):
                found += _asked_by(table, names_in(forward))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _asked_by_name(forward: Forward) -> tuple[_Place, ...]:
    """Return the places without those in tables, which may hold a function that looks into them."""
    found: list[_Place] = []
    for function in functions_of(forward):
        if not is_ours(function.__globals__):
            names = frozenset(_names(function.__code__))
            found += [(function.__globals__, name) for name in names & {"type", "callable"}]
            if any(name in _compat.TREES and "tree_" in name for name in names):
                found.append((_compat.TREES, "type"))
    return tuple(found)


def _asked_by(value: Any, named: frozenset[str]) -> Iterator[_Place]:
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
        items = items_of(value)
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


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


class _Type:
    """Stands for ``type`` where code looks it up; but for a stand-in it does what that does.

    No class, for then the metaclass of a class made of it would be another one.
    """

    def __init__(self, kind_of: Callable[[fx.Proxy], type]) -> None:
        object.__setattr__(self, "kind_of", kind_of)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and issubclass(type(args[0]), fx.Proxy):
            return object.__getattribute__(self, "kind_of")(args[0])
        made = type(*args, **kwargs)
        return self if made is type else made  # the code may compare it with ``type``

    def __mro_entries__(self, bases: object) -> tuple[type]:
        return (type,)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, type)

    def __eq__(self, other: object) -> bool:
        return other is self or other is type

    def __hash__(self) -> int:
        return hash(type)

    def __getitem__(self, item: Any) -> Any:
        return type[item]

    def __or__(self, other: Any) -> Any:
        return type | other

    def __ror__(self, other: Any) -> Any:
        return other | type

    def __repr__(self) -> str:
        return repr(type)

    def __getattribute__(self, name: str) -> Any:
        if name == "__mro_entries__":  # what a class statement asks its bases for
            return object.__getattribute__(self, name)
        return getattr(type, name)


class _TypeInTrees(_Type):
    """The same where torch looks through containers; not for torch's own code, which hands on stand-ins."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals is _compat.TREES:
            frame = frame.f_back
        is_for_user = frame is not None and not is_ours(frame.f_globals)
        return super().__call__(*args, **kwargs) if is_for_user else type(*args, **kwargs)


def _callable_for(kind_of: Callable[[fx.Proxy], type]) -> Callable[[Any], bool]:
    def asked(value: Any) -> bool:
        if issubclass(type(value), fx.Proxy):
            return "__call__" in {name for kind in kind_of(value).__mro__ for name in vars(kind)}
        return callable(value)

    return asked
