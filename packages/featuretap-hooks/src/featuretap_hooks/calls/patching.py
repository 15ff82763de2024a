"""Functions that are one node each: ``math``, those given to ``torch.fx.wrap``, and the caller's.

They are replaced where a forward finds them, and only while a forward is recorded. Several threads
may record at once, so the replacements are counted, and each looks for the recorder of its thread.
"""

from __future__ import annotations

import builtins
import functools
import operator
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from featuretap.inspecting.looking import ORIGINAL, original_of
from featuretap.inspecting.reading import CachedFunction
from featuretap.inspecting.whose import is_ours
from featuretap.naming import operation_name
from featuretap.standins.asking import ASKS_FOR_MODES

from .._compat import control_flow, is_compiled_function
from ..recorder import Recorder
from ..tracked import plain
from .fast_paths import without_modes

__all__ = [
    "MISSING",
    "Namespace",
    "Place",
    "RecordingFunctions",
    "active_recorder",
    "methods_of",
    "place_in",
    "unrecorded",
    "wrapper_of",
]

_LOCK = threading.Lock()
_ACTIVE = threading.local()
MISSING = object()


class Place(NamedTuple):
    """Where a function is looked up."""

    namespace: dict[str, Any]
    name: str
    original: Any
    wrapper: Any


class _Methods(dict[str, Any]):
    def __init__(self, owner: type) -> None:
        super().__init__()
        self._owner = owner

    def items(self) -> Any:
        return vars(self._owner).items()

    def get(self, name: str, default: Any = None) -> Any:
        return vars(self._owner).get(name, default)

    def update(self, values: Any) -> None:  # type: ignore[override]
        for name, value in values.items():
            setattr(self._owner, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._owner, name, value)

    def pop(self, name: str, _default: Any = None) -> None:
        delattr(self._owner, name)


def methods_of(owner: type) -> dict[str, Any]:
    """Return the methods of a class, by the means of a dict."""
    return _Methods(owner)


class Namespace:
    """The places of one namespace, most often exchanged all at once.

    Args:
        namespace: where they are.
        places: each of them.

    """

    def __init__(self, namespace: dict[str, Any], places: Sequence[Place]) -> None:
        self.places = places
        self._namespace = namespace
        self._names = [place.name for place in places]
        self._present = [place.original for place in places]
        self._originals = dict(zip(self._names, self._present, strict=True))
        self._wrappers = {p.name: p.wrapper for p in places if p.wrapper is not None}

    def wrap(self) -> bool:
        """Put the wrappers there, if everything is as it was found; say whether that is so."""
        if not all(map(operator.is_, map(self._namespace.get, self._names), self._present)):
            return False
        self._namespace.update(self._wrappers)
        return True

    def put_back(self) -> None:
        """Undo :meth:`wrap`."""
        self._namespace.update(self._originals)


class _Installed:
    """What is replaced now, by how many forwards at once; all is put back after the last."""

    def __init__(self) -> None:
        self.forwards = 0
        self.whole: list[Namespace] = []
        self.single: list[Place] = []

    def add(self, found: Iterable[Namespace]) -> None:
        self.forwards += 1
        for together in found:
            if together.wrap():
                self.whole.append(together)
            else:
                self._replace_each(together.places)

    def _replace_each(self, places: Iterable[Place]) -> None:
        for place in places:
            present = place.namespace.get(place.name, MISSING)
            if present is place.wrapper:
                continue
            is_known = present is place.original
            now = place if is_known else place_in(place.namespace, place.name)
            if now.wrapper is not None:
                now.namespace[now.name] = now.wrapper
                self.single.append(now)

    def remove(self) -> None:
        self.forwards -= 1
        if self.forwards:
            return
        for namespace, name, original, _ in self.single:
            if original is MISSING:
                namespace.pop(name, None)
            else:
                namespace[name] = original
        for together in self.whole:
            together.put_back()
        self.single.clear()
        self.whole.clear()


_INSTALLED = _Installed()


def active_recorder() -> Recorder | None:
    """Return the recorder of the forward that this thread is in, if it is in one."""
    return getattr(_ACTIVE, "recorder", None)


@contextmanager
def unrecorded() -> Iterator[None]:
    """While entered, no forward is recorded in this thread, as far as anybody can tell."""
    recorder = active_recorder()
    if recorder is None:
        yield
        return
    was_busy, recorder.busy, _ACTIVE.recorder = recorder.busy, True, None
    try:
        yield
    finally:
        recorder.busy, _ACTIVE.recorder = was_busy, recorder


def place_in(namespace: dict[str, Any], name: str) -> Place:
    """Return the place of a name, and what stands there while a forward is recorded."""
    original = original_of(namespace.get(name, MISSING))
    function = getattr(builtins, name, None) if original is MISSING else original
    return Place(namespace, name, original, wrapper_of(function) if callable(function) else None)


class RecordingFunctions:
    """While entered, calls of the functions at these places are recorded as one node each.

    Args:
        recorder: who is told.
        found: the places.

    """

    def __init__(self, recorder: Recorder, found: Collection[Namespace]) -> None:
        self._recorder = recorder
        self._found = found

    def __enter__(self) -> None:
        self._outer = active_recorder()
        _ACTIVE.recorder = self._recorder
        if self._found:
            with _LOCK:
                _INSTALLED.add(self._found)

    def __exit__(self, *_: object) -> None:
        _ACTIVE.recorder = self._outer
        if self._found:
            with _LOCK:
                _INSTALLED.remove()


def _uncached(function: Any) -> Callable[..., Any]:
    """Return what computes anew of sizes that are watched: a cache would answer for them once."""

    @functools.wraps(function, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        recorder, given = active_recorder(), (args, kwargs)
        is_watched = recorder is not None and recorder.listening and recorder.has_tracked
        run = function.__wrapped__ if is_watched and plain(given) is not given else function
        return run(*args, **kwargs)

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(wrapped, name, getattr(function, name))
    setattr(wrapped, ORIGINAL, function)
    return wrapped


def _answered(function: Any) -> Callable[..., Any]:
    """Return what answers code of the model as if nobody watched."""
    unwatched = without_modes(function)

    @functools.wraps(function, updated=())
    def wrapped(*args: Any) -> Any:
        return (function if is_ours(sys._getframe(1).f_globals) else unwatched)(*args)

    setattr(wrapped, ORIGINAL, function)
    return wrapped


@functools.lru_cache(maxsize=1024)
def wrapper_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what is called in the place of ``function``."""
    if type(function) is CachedFunction:
        return _uncached(function)
    if function in ASKS_FOR_MODES.values():
        return _answered(function)
    operation = operation_name(function)
    is_for_dynamo = is_compiled_function(function) or function in control_flow().values()
    run = without_modes(function) if is_for_dynamo else function

    # Without its attributes, by which dynamo would know it for compiled.
    @functools.wraps(function, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        recorder = active_recorder()
        if (
            recorder is None
            or not recorder.listening
            or not recorder.takes_part((*args, *kwargs.values()))
        ):
            return run(*args, **kwargs)
        return recorder.run(operation, run, args, kwargs)

    setattr(wrapped, ORIGINAL, function)
    return wrapped
