"""What was read off code is remembered, as long as the code is there and no longer."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["MOST_CODES", "by_code", "by_forward"]

_R = TypeVar("_R")
_F = TypeVar("_F", bound=Callable[..., Any])
MOST_CODES = 4096


def by_code(read: Callable[..., _R]) -> Callable[..., _R]:
    """Return ``read(code, ...)`` so that it reads each code object once.

    Code is told by identity. By equality, as of ``functools.lru_cache``, Python 3.12 and later would go
    through all its instructions at each call.

    >>> @by_code
    ... def names(code):
    ...     return code.co_names
    >>> names(by_code.__code__) is names(by_code.__code__)
    True

    """
    # The code is kept, so that no other gets its id.
    known: dict[tuple[Any, ...], tuple[types.CodeType, _R]] = {}

    @functools.wraps(read)
    def reading(code: types.CodeType, *more: Any) -> _R:
        key = (id(code), *more)
        found = known.get(key)
        if found is None:
            if len(known) >= MOST_CODES:
                known.clear()
            found = known[key] = (code, read(code, *more))
        return found[1]

    return reading


def by_forward(read: _F) -> _F:
    """Return ``read(forward)`` so that it reads each :class:`.Forward` once.

    What was read knows the function. A forward that a module has of its own is often made around it,
    and may hold the whole model: it is remembered with the function itself, and freed with it.
    """
    known = functools.lru_cache(maxsize=MOST_CODES)(read)

    @functools.wraps(read)
    def reading(forward: Any) -> Any:
        function = forward.function
        if getattr(function, "__closure__", None) and _is_own(forward.kind, function):
            return vars(function).setdefault("__featuretap__", _Remembered())(read, forward)
        return known(forward)

    return reading  # type: ignore[return-value]


class _Remembered:
    """What was read of one function. To whoever looks through objects this is a function, too."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, read: Callable[..., Any], forward: Any) -> Any:
        # By the forward as well, for ``functools.wraps`` hands this on to another function.
        key = (read, forward)
        if key not in self._known:
            self._known[key] = read(forward)
        return self._known[key]


def _is_own(kind: type, function: Any) -> bool:
    """Say whether a function, which has variables around it, is not the forward of a class."""
    return isinstance(function, types.FunctionType) and (
        getattr(kind, "forward", None) is not function
    )
