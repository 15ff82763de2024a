"""``type`` and ``callable``, as code of a model finds them where values may be stand-ins.

They are put where the code looks them up, while a model is traced or watched. Several threads may do
that at once, so it is counted.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from .. import _compat
from ..inspecting.whose import is_ours

__all__ = ["AskedPlace", "AskedTypes", "answer_for", "types_shown"]

# A namespace, and a name in it.
AskedPlace: TypeAlias = tuple[dict[str, Any], str]

_LOCK = threading.Lock()
# How often a name of a namespace, by ``id``, was put there.
_SHOWN: dict[tuple[int, str], int] = {}
# Kinds of stand-ins -> how to know the type of the value that one stands for.
_KINDS: dict[type, Callable[[Any], type]] = {}


def answer_for(stand_ins: type, kind_of: Callable[[Any], type]) -> None:
    """Have ``kind_of`` answer for the type of stand-ins of a class; it raises where that is not certain."""
    _KINDS[stand_ins] = kind_of


def _asked_of(value: object) -> Callable[[Any], type] | None:
    kind = type(value)
    return next((ask for stand_ins, ask in _KINDS.items() if issubclass(kind, stand_ins)), None)


class AskedTypes:
    """Shows code other functions under these two names, until all is restored."""

    def __init__(self) -> None:
        self._places: list[AskedPlace] = []

    def show_in(self, places: Iterable[AskedPlace]) -> None:
        """Let the code that looks in these places find them; a name that is there is the user's own."""
        with _LOCK:
            for namespace, name in places:
                key = (id(namespace), name)
                if name not in namespace or key in _SHOWN:
                    namespace[name] = (
                        _TYPE_IN_TREES if namespace is _compat.TREES else _BY_NAME[name]
                    )
                    _SHOWN[key] = _SHOWN.get(key, 0) + 1
                    self._places.append((namespace, name))

    def restore(self) -> None:
        """Let all code find Python's own again, unless others still need these."""
        with _LOCK:
            while self._places:
                namespace, name = self._places.pop()
                key = (id(namespace), name)
                _SHOWN[key] -= 1
                if not _SHOWN[key]:
                    del _SHOWN[key], namespace[name]


@contextlib.contextmanager
def types_shown(places: Iterable[AskedPlace]) -> Iterator[None]:
    """While entered, code that looks in these places finds them."""
    shown = AskedTypes()
    try:
        shown.show_in(places)
        yield
    finally:
        shown.restore()


class _Type:
    """Stands for ``type`` where code looks it up; but for a stand-in it does what that does.

    No class, for then the metaclass of a class made of it would be another one.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ask = _asked_of(args[0]) if len(args) == 1 else None
        if ask is not None:
            return ask(args[0])
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


def _callable(value: Any) -> bool:
    ask = _asked_of(value)
    if ask is None:
        return callable(value)
    return "__call__" in {name for kind in ask(value).__mro__ for name in vars(kind)}


_TYPE_IN_TREES = _TypeInTrees()
_BY_NAME: dict[str, Any] = {"type": _Type(), "callable": _callable}
