"""Make a function one node wherever it is reached from.

``torch.fx`` replaces a wrapped function only among the globals of the file that holds
``forward``. A function is just as often called through its module (``ops.f(x)``), or imported
inside a forward. So each name in each loaded module that stands for it is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx, nn

from .. import _compat
from ..inspecting.containers import instances_in
from ..inspecting.whose import is_of_torch
from .replaced import attributes_replaced

__all__ = [
    "MATH",
    "namespaces_of_modules",
    "patched_everywhere",
    "patched_functions",
    "reached_operators",
]

_FACTORIES = "arange empty eye full linspace logspace ones rand randint randn randperm zeros"
_PUBLIC = {name: value for name, value in vars(math).items() if not name.startswith("_")}

#: The functions of Python's ``math``: a stand-in is no number.
MATH = tuple(filter(callable, _PUBLIC.values()))
_PATCHED: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in _FACTORIES.split()),
    *((math, name) for name, value in _PUBLIC.items() if callable(value)),
)


def reached_operators(modules: Iterable[nn.Module]) -> list[types.ModuleType]:
    """Return ``torchvision.ops`` if some forward looks up a function of it that fx does not know of.

    To have all of its functions wrapped costs as much as to trace a small model.
    """
    operators = sys.modules.get("torchvision.ops")
    if operators is None:
        return []
    wanted = {id(operators), id(sys.modules["torchvision"])}
    wanted |= {id(value) for value in vars(operators).values() if callable(value)}
    namespaces = {id(function.__globals__): function.__globals__ for function in _forwards(modules)}
    found = {
        (key, name)
        for key, namespace in namespaces.items()
        if not wanted.isdisjoint(map(id, namespace.values()))
        for name, value in namespace.items()
        if id(value) in wanted and not isinstance(value, type)
    }
    known = (
        {(id(space), name) for space, name in _compat.functions_wrapped_for_fx()}
        if found
        else set()
    )
    return [operators] if found - known else []


def _forwards(modules: Iterable[nn.Module]) -> Iterator[types.FunctionType]:
    for kind in set(map(type, modules)):
        forward = getattr(kind, "forward", None)
        if isinstance(forward, types.FunctionType) and not is_of_torch(kind):
            yield forward


def namespaces_of_modules() -> list[dict[str, Any]]:
    """Return the globals of all Python modules that are loaded; some put other objects there."""
    loaded = (getattr(module, "__dict__", None) for module in list(sys.modules.values()))
    return [namespace for namespace in loaded if namespace is not None]


@contextlib.contextmanager
def patched_everywhere(functions: tuple[Callable[..., Any], ...]) -> Iterator[None]:
    """While entered, calls of ``functions`` with a Proxy are recorded as one node."""
    wrappers = {id(function): _wrapper(function) for function in functions}
    patched: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []
    try:
        if wrappers:
            for namespace in namespaces_of_modules():
                for name, value in list(namespace.items()):
                    if id(value) in wrappers:
                        patched.append((namespace, name, value))
                        namespace[name] = wrappers[id(value)]
        yield
    finally:
        for namespace, name, value in patched:
            namespace[name] = value


def patched_functions() -> AbstractContextManager[None]:
    """While entered, ``torch.zeros(a, b)`` and ``math.sqrt(a)`` take stand-ins as well."""
    return attributes_replaced((owner, name, _kept_wrapper) for owner, name in _PATCHED)


def _wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        proxy = next(instances_in(fx.Proxy, args, kwargs), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    # fx leaves a function that carries this mark alone.
    wrapped.__fx_already_patched = True  # type: ignore[attr-defined]
    return wrapped


# To make them anew for each trace, as fx would for ``math``, takes a tenth of the trace of a small model.
_kept_wrapper = functools.lru_cache(maxsize=256)(_wrapper)
