"""Room on the stack for what watches a model, which takes several calls for each of the model's own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["more_recursion"]

_FACTOR = 3
_LOCK = threading.Lock()
# The limit before the first of those who want more.
_BEFORE: list[int] = []


@contextmanager
def more_recursion() -> Iterator[None]:
    """Have a model that is as deep as Python lets it be traced, copied or watched while entered.

    The limit is the process's own; several threads may want it at once.
    """
    with _LOCK:
        _BEFORE.append(_BEFORE[0] if _BEFORE else sys.getrecursionlimit())
        sys.setrecursionlimit(_FACTOR * _BEFORE[0])
    try:
        yield
    finally:
        with _LOCK:
            before = _BEFORE.pop()
            if not _BEFORE:
                sys.setrecursionlimit(before)
