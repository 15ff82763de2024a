"""Whose code it is: ours, torch's, Python's own, a library's, or the user's."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from typing import Any

__all__ = [
    "FEATURETAP",
    "called_by_model",
    "is_of_torch",
    "is_our_module",
    "is_ours",
    "is_users",
    "is_users_module",
    "runs_users_code",
]

#: Our own packages.
FEATURETAP = frozenset({"featuretap", "featuretap_hooks"})
_OURS = FEATURETAP | {"torch"}


def is_of_torch(kind: type) -> bool:
    """Say whether a class is one of torch's."""
    return kind.__module__.startswith("torch.")


def is_ours(namespace: Mapping[str, Any]) -> bool:
    """Say whether code with these globals is torch's or ours."""
    return is_our_module(namespace.get("__name__"))


def called_by_model(frame: types.FrameType) -> bool:
    """Say whether ``frame`` runs code of the user's or of some library, and not torch's or ours."""
    return not is_ours(frame.f_globals)


def runs_users_code(frame: types.FrameType) -> bool:
    """Say whether the code of ``frame`` is neither of a library that is known here nor of Python's own."""
    return is_users_module(str(frame.f_globals.get("__name__")))


@functools.lru_cache(maxsize=4096)
def is_our_module(name: str | None) -> bool:
    """Say whether a Python module is torch's or ours."""
    return str(name).partition(".")[0] in _OURS


def is_users(kind: type) -> bool:
    """Say whether a class is neither of a library that is known here nor of Python's own."""
    return is_users_module(kind.__module__)


def is_users_module(name: str) -> bool:
    """Say the same of a Python module."""
    top = name.partition(".")[0]
    is_known = top in _OURS or top == "numpy"
    return not is_known and (top not in sys.stdlib_module_names or top == "__main__")
