"""Custom ``torch.autograd.Function``s: their backward would be lost, so they are refused.

``apply`` runs the forward under ``no_grad`` and ties the backward to it in C++, where a trace cannot
follow. Reentrant checkpointing is such a function too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from .faithful import contains

__all__ = ["refused_functions"]


@contextlib.contextmanager
def refused_functions() -> Iterator[None]:
    """While entered, ``Function.apply`` with a Proxy is a :class:`torch.fx.proxy.TraceError`."""
    function: Any = torch.autograd.Function
    original = vars(function)["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if contains(fx.Proxy, args, kwargs):
            raise fx.proxy.TraceError(
                f"the backward of the autograd.Function {cls.__name__} would be lost"
            )
        return original.__get__(None, cls)(*args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original
