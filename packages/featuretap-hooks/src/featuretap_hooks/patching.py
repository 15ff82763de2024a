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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from featuretap.backends import Options
from featuretap.modules import ModuleTree
from featuretap.naming import operation_name

from ._compat import functions_wrapped_for_fx
from .recorder import Recorder

__all__ = ["Place", "active_recorder", "places", "recording_functions"]

Place = tuple[dict[str, Any], str]

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
    return list({(id(namespace), name): (namespace, name) for namespace, name in found}.values())


def _named(namespace: dict[str, Any], ids: set[int]) -> Iterator[Place]:
    for name, value in list(namespace.items()):
        if id(value) in ids and not name.startswith("__"):
            yield namespace, name


@contextmanager
def recording_functions(recorder: Recorder, found: Iterable[Place]) -> Iterator[None]:
    """While entered, calls of the functions at these places are recorded as one node each."""
    found = list(found)
    outer = active_recorder()
    _ACTIVE.recorder = recorder
    with _LOCK:
        for place in found:
            _replace(*place)
    try:
        yield
    finally:
        _ACTIVE.recorder = outer
        with _LOCK:
            for place in found:
                _put_back(*place)


def _replace(namespace: dict[str, Any], name: str) -> None:
    entry = _REPLACED.setdefault((id(namespace), name), [0, namespace.get(name, _MISSING)])
    entry[0] += 1
    original = getattr(builtins, name, None) if entry[1] is _MISSING else entry[1]
    if entry[0] == 1 and callable(original):
        namespace[name] = _wrapper(original)


def _put_back(namespace: dict[str, Any], name: str) -> None:
    entry = _REPLACED[id(namespace), name]
    entry[0] -= 1
    if entry[0] == 0:
        del _REPLACED[id(namespace), name]
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
