"""Remembers what was read off code objects."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["by_code"]

_R = TypeVar("_R")
_MOST = 4096


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
            if len(known) >= _MOST:
                known.clear()
            found = known[key] = (code, read(code, *more))
        return found[1]

    return reading
