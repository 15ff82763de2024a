"""Functions that are one node each: ``math``, those given to ``torch.fx.wrap``, and the caller's.

They are replaced where a forward finds them, and only while a forward is recorded. Several threads
may record at once, so the replacements are counted, and each looks for the recorder of its thread.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from featuretap._compat import functions_wrapped_for_fx
from featuretap.asking import ASKS_FOR_MODES
from featuretap.backends import Options
from featuretap.looking import ORIGINAL, original_of
from featuretap.modules import ModuleTree
from featuretap.naming import operation_name
from featuretap.reading import CachedFunction, forward_of, functions_of, is_ours, is_users, kinds_of

from ._compat import control_flow, is_compiled_function
from .fast_paths import without_modes
from .recorder import Recorder
from .tracked import plain

__all__ = ["Namespace", "RecordingFunctions", "active_recorder", "operations_at", "places"]

_LOCK = threading.Lock()
_ACTIVE = threading.local()
_MISSING = object()


class Place(NamedTuple):
    """Where a function is looked up."""

    namespace: dict[str, Any]
    name: str
    original: Any
    wrapper: Any


class _Methods(dict[str, Any]):
    """The methods of a class, by the means of a dict."""

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
            present = place.namespace.get(place.name, _MISSING)
            if present is place.wrapper:
                continue
            is_known = present is place.original
            now = place if is_known else _place(place.namespace, place.name)
            if now.wrapper is not None:
                now.namespace[now.name] = now.wrapper
                self.single.append(now)

    def remove(self) -> None:
        self.forwards -= 1
        if self.forwards:
            return
        for namespace, name, original, _ in self.single:
            if original is _MISSING:
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


def places(tree: ModuleTree, options: Options, mentioned: Collection[str]) -> list[Namespace]:
    """Find where the forwards of a model look up functions that are one node each.

    Args:
        tree: the modules of the model.
        options: with functions and modules that the caller wants to be wrapped.
        mentioned: the names that code mentions which the forwards may come to.

    """
    operators = sys.modules.get("torchvision.ops")
    modules = [math, *([operators] if operators else []), *options.autowrap_modules]
    whole = {
        id(original_of(value))
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type)
    }
    control = {n: function for n, function in control_flow().items() if n in mentioned}
    whole |= set(map(id, control.values()))
    whole |= set(map(id, ASKS_FOR_MODES.values()))
    modules += [torch.overrides] if not ASKS_FOR_MODES.keys().isdisjoint(mentioned) else []
    everywhere = {id(function) for function in options.autowrap_functions}
    if control:
        homes = dict.fromkeys(function.__module__ for function in control.values())
        modules += [torch, torch._higher_order_ops, *map(sys.modules.__getitem__, homes)]
    globals_ = {id(vars(module)): vars(module) for module in modules}
    for module in tree.paths.values():
        namespace = getattr(module.forward, "__globals__", None)
        if namespace is not None:
            globals_[id(namespace)] = namespace
    found = list(functions_wrapped_for_fx())
    for namespace in globals_.values():
        found += _named(namespace, whole)
    classes = {
        kind for m in tree.paths.values() for kind in type(m).__mro__ if not _is_torchs(kind)
    }
    spaces = (*globals_.values(), *map(vars, tree.paths.values()), *map(_Methods, classes))
    for namespace in spaces:
        found += _compiled(namespace)
    for namespace in _namespaces(tree):
        found += _cached(namespace)
    # Most models call few of these, and exchanging the others would take as long as some layers.
    found = [(namespace, name) for namespace, name in found if name in mentioned]
    if everywhere:
        for loaded in list(sys.modules.values()):
            found += _named(vars(loaded), everywhere) if loaded is not None else []
    names: dict[int, set[str]] = {}
    namespaces = {id(namespace): namespace for namespace, _ in found}
    for namespace, name in found:
        names.setdefault(id(namespace), set()).add(name)
    together = [
        Namespace(namespace, [_place(namespace, name) for name in sorted(names[key])])
        for key, namespace in namespaces.items()
    ]
    return [*together, *map(_method, _UNSEEN & set(mentioned))]


def operations_at(found: Iterable[Namespace]) -> set[str]:
    """Return what the functions at these places are called."""
    wrappers = (place.wrapper for namespace in found for place in namespace.places)
    return {operation_name(original_of(wrapper)) for wrapper in wrappers if wrapper is not None}


# Methods of tensors that no torch-function mode is shown.
_UNSEEN = frozenset({"as_subclass"})


def _method(name: str) -> Namespace:
    methods, method = _Methods(torch.Tensor), getattr(torch.Tensor, name)
    # They are inherited; what is there stands for one while a forward in another thread is recorded.
    return Namespace(methods, [Place(methods, name, _MISSING, _wrapper(original_of(method)))])


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")


def _place(namespace: dict[str, Any], name: str) -> Place:
    original = original_of(namespace.get(name, _MISSING))
    function = getattr(builtins, name, None) if original is _MISSING else original
    return Place(namespace, name, original, _wrapper(function) if callable(function) else None)


def _named(namespace: dict[str, Any], ids: set[int]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        if id(original_of(value)) in ids and not name.startswith("__"):
            yield namespace, name


def _compiled(namespace: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        # Dynamo's own begin with underscores; a module whose forward is compiled is a leaf.
        if (
            not name.startswith("_")
            and name != "forward"
            and is_compiled_function(original_of(value))
        ):
            yield namespace, name


def _namespaces(tree: ModuleTree) -> Iterator[dict[str, Any]]:
    """Yield the globals and the methods that the code of the forwards comes to by name."""
    forwards = set(map(forward_of, tree.paths.values()))
    functions = [function for forward in forwards for function in functions_of(forward)]
    yield from {id(f.__globals__): f.__globals__ for f in functions}.values()
    kinds = {base for forward in forwards for kind in kinds_of(forward) for base in kind.__mro__}
    yield from (_Methods(kind) for kind in kinds if is_users(kind))


def _cached(namespace: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        if type(original_of(value)) is CachedFunction:
            yield namespace, name


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
def _wrapper(function: Callable[..., Any]) -> Callable[..., Any]:
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
