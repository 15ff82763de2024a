"""Indexing as torch-function modes see it: until torch 2.3, not all of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .._compat import torch_function_mode_enabled

__all__ = ["hides_indexing", "indexing_shown", "is_method"]


@cache
def hides_indexing() -> bool:
    """Say whether a torch-function mode does not see ``x[0]``: so it is before torch 2.3."""
    seen: list[Any] = []

    class Sees(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    vector = torch.zeros(1)
    with Sees():
        _ = vector[0]
    return not seen


def _shown(original: Any) -> Any:
    def method(*args: Any) -> Any:
        if torch_function_mode_enabled():
            return torch.overrides.handle_torch_function(original, args, *args)
        return original(*args)

    return method


_INDEXING: dict[str, Any] = {
    name: getattr(torch.Tensor, name) for name in ("__getitem__", "__setitem__")
}
_INDEXING_LOCK = threading.Lock()
_SHOWN_TO: list[int] = []


def indexing_shown() -> contextlib.AbstractContextManager[None]:
    """Have torch-function modes see ``x[i]`` and ``x[i] = y``, while entered, also on older torch.

    There they see it only for some kinds of ``i`` and ``y``. Counted, for several threads may want it
    at once. Checked on torch 2.0.1, 2.2.2, 2.4.1 and 2.15.0.
    """
    return _indexing_shown() if hides_indexing() else contextlib.nullcontext()


@contextlib.contextmanager
def _indexing_shown() -> Iterator[None]:
    with _INDEXING_LOCK:
        if not _SHOWN_TO:
            for name, original in _INDEXING.items():
                setattr(torch.Tensor, name, _shown(original))
        _SHOWN_TO.append(threading.get_ident())
    try:
        yield
    finally:
        with _INDEXING_LOCK:
            _SHOWN_TO.pop()
            if not _SHOWN_TO:
                for name in _INDEXING:
                    delattr(torch.Tensor, name)


def is_method(func: Callable[..., Any]) -> bool:
    """Say whether ``func``, which a torch-function mode was given, is a method or property of tensors."""
    is_one = func in _methods() or func.__name__ == "__get__"
    return is_one or func in _INDEXING.values()


@cache
def _methods() -> frozenset[Callable[..., Any]]:
    # Asked of torch once: it sets and drops a filter of warnings at every question.
    return frozenset(torch.overrides.get_overridable_functions()[torch.Tensor])
