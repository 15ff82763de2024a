"""Functions that are one node each: ``math``, those given to ``torch.fx.wrap``, and the caller's.

They are replaced where a forward finds them, and only while a forward is recorded. Several threads
may record at once, so the replacements are counted, and each looks for the recorder of its thread.
"""

from __future__ import annotations

import builtins
import functools
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from featuretap.backends import Options
from featuretap.modules import ModuleTree
from featuretap.naming import operation_name

from ._compat import functions_wrapped_for_fx
from .recorder import Recorder

__all__ = ["Place", "active_recorder", "places", "recording_functions"]


class Place(NamedTuple):
    """Where a function is looked up."""

    namespace: dict[str, Any]
    name: str
    key: tuple[int, str]


_LOCK = threading.Lock()
_ACTIVE = threading.local()
# (id of the namespace, name) -> how many forwards need the replacement, and what was there.
_REPLACED: dict[tuple[int, str], list[Any]] = {}
_MISSING = object()


def active_recorder() -> Recorder | None:
    """Return the recorder of the forward that this thread is in, if it is in one."""
    return getattr(_ACTIVE, "recorder", None)


def places(tree: ModuleTree, options: Options) -> list[Place]:
    """Find where the forwards of a model look up functions that are one node each."""
    operators = sys.modules.get("torchvision.ops")
    modules = [math, *([operators] if operators else []), *options.autowrap_modules]
    whole = {
        id(value)
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type)
    }
    everywhere = {id(function) for function in options.autowrap_functions}
    globals_ = {id(vars(module)): vars(module) for module in modules}
    for module in tree.paths.values():
        namespace = getattr(module.forward, "__globals__", None)
        if namespace is not None:
            globals_[id(namespace)] = namespace
    found = list(functions_wrapped_for_fx())
    for namespace in globals_.values():
        found += _named(namespace, whole)
    if everywhere:
        for loaded in list(sys.modules.values()):
            found += _named(vars(loaded), everywhere) if loaded is not None else []
    by_key = {(id(namespace), name): namespace for namespace, name in found}
    return [Place(namespace, key[1], key) for key, namespace in by_key.items()]


def _named(namespace: dict[str, Any], ids: set[int]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        if id(value) in ids and not name.startswith("__"):
            yield namespace, name


@contextmanager
def recording_functions(recorder: Recorder, found: Collection[Place]) -> Iterator[None]:
    """While entered, calls of the functions at these places are recorded as one node each."""
    outer = active_recorder()
    _ACTIVE.recorder = recorder
    with _LOCK:
        for namespace, name, key in found:
            _replace(namespace, name, key)
    try:
        yield
    finally:
        _ACTIVE.recorder = outer
        with _LOCK:
            for namespace, name, key in found:
                _put_back(namespace, name, key)


def _replace(namespace: dict[str, Any], name: str, key: tuple[int, str]) -> None:
    entry = _REPLACED.get(key)
    if entry is not None:
        entry[0] += 1
        return
    present = namespace.get(name, _MISSING)
    _REPLACED[key] = [1, present]
    original = getattr(builtins, name, None) if present is _MISSING else present
    if callable(original):
        namespace[name] = _wrapper(original)


def _put_back(namespace: dict[str, Any], name: str, key: tuple[int, str]) -> None:
    entry = _REPLACED[key]
    entry[0] -= 1
    if entry[0] == 0:
        del _REPLACED[key]
        if entry[1] is _MISSING:
            namespace.pop(name, None)
        else:
            namespace[name] = entry[1]


@functools.lru_cache(maxsize=1024)
def _wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
    operation = operation_name(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        recorder = active_recorder()
        if (
            recorder is None
            or not recorder.listening
            or not recorder.takes_part((*args, *kwargs.values()))
        ):
            return function(*args, **kwargs)
        return recorder.run(operation, function, args, kwargs)

    return wrapped
