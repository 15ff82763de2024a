"""One forward of a model, watched: in full, or only where a request needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from featuretap._compat import functorch_level
from featuretap.standins.asked_types import types_shown
from featuretap.trace.indexing import hides_indexing, indexing_shown

from ._compat import call_uncompiled, is_met_by_dynamo
from .calls.fast_paths import fast_paths
from .calls.module_hooks import Around, ModuleHooks
from .calls.patching import RecordingFunctions
from .findings import Findings
from .going_on import Maker
from .keeping.leftovers import make_plain, take_back
from .keeping.warm_caches import cold_caches
from .recorder import Recorder
from .scopes import Calls, Part, Scopes
from .sinks import Sink

__all__ = ["run_watched", "watch_modules", "watched_run"]

# Takes a name, its value and what made it; may return what to exchange the value for.
Take: TypeAlias = Callable[[str, Any, Maker], Any]

_COMPILES = (
    "the forward compiles a function or a module itself, and dynamo cannot look into it while operations "
    "are recorded around it. Call the extractor under torch.compiler.set_stance('force_eager'), which "
    "runs it uncompiled, or compile where the function is defined: then it is one node"
)


def run_watched(
    found: Findings,
    sink: Sink,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    part: Part,
    calls: Calls | None = None,
) -> None:
    """Run a model and hand every node to ``sink``.

    Args:
        found: what is known of the model.
        sink: where nodes go.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        part: what is recorded.
        calls: filled with who calls whom.

    """
    watched_run(found, part, calls=calls)(sink, args, kwargs)


def watched_run(
    found: Findings, part: Part, *, calls: Calls | None = None, watch_on: bool = True
) -> Callable[[Any, Any, Any], None]:
    """Return the same as a function of the sink, the arguments and the keyword arguments.

    Without ``watch_on`` nothing is watched any more once the sink has all that it wants.
    """
    run = partial(_run_watched, found, part, calls, watch_on)
    surroundings = _surroundings(found, part)
    if not surroundings:
        return run

    def run_surrounded(sink: Sink, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        with ExitStack() as stack:
            for surround in surroundings:
                stack.enter_context(surround())
            run(sink, args, kwargs)

    return run_surrounded


def _surroundings(found: Findings, part: Part) -> list[Callable[[], AbstractContextManager[None]]]:
    """Return what must be otherwise while a forward is recorded: nothing, of most models."""
    layers = found.unwatched_layers if part.scopes is None else found.compiled_layers
    surroundings: list[Callable[[], AbstractContextManager[None]]] = []
    if layers:
        surroundings.append(partial(fast_paths, layers))
    if found.asked_types:
        surroundings.append(partial(types_shown, found.asked_types))
    if hides_indexing():
        surroundings.append(indexing_shown)
    if found.caches:
        surroundings.append(partial(cold_caches, found.caches))
    return surroundings


def _run_watched(
    found: Findings,
    part: Part,
    calls: Calls | None,
    watch_on: bool,
    sink: Sink,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    model, given = found.tree.model, (*args, *kwargs.values())
    recorder = Recorder(found.tree, sink, confined=part.scopes is not None, notes=calls)
    scopes = Scopes(recorder, part.scopes, calls)
    hooks = ModuleHooks(model, may_wrap=not found.own_code.rewires)
    try:
        with RecordingFunctions(recorder, found.places), hooks:
            scopes.watch(hooks, part)
            if not watch_on:
                sink.when_complete = partial(scopes.let_go, hooks)
            if part.names_inputs or kwargs or set(map(type, args)) != {torch.Tensor}:
                args, kwargs = found.arguments.watched(recorder, args, kwargs)
            else:
                for tensor in args:
                    recorder.mark(tensor)
            if part.calls_itself:
                scopes.run(model, call_uncompiled(model), args, kwargs)
            else:
                call_uncompiled(model)(*args, **kwargs)
    except Exception as error:
        if is_met_by_dynamo(error):
            raise RuntimeError(_COMPILES) from error
        raise
    finally:
        hooks.close()
        scopes.finish()
        sink.when_complete = None  # it knows the recorder, which knows the sink
        if recorder.has_tracked:
            make_plain(found.storing, given)
        if recorder.aliases:
            take_back(recorder.aliases, found.storing)


class _FirstReturned(Around):
    """Takes what the first call of a module returned, where that is the first to end."""

    __slots__ = ("_failed", "_path", "_take")

    def __init__(self, path: str, take: Take) -> None:
        self._path = path
        self._take = take
        self._failed = False

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        # The first one, if none returned before it.
        self._failed = self._failed or raised
        return None if self._failed else self._take(self._path, value, module)


class _FirstCall(Around):
    """Takes what the first call of a module returned, also if that is not the first to return."""

    def __init__(self, path: str, take: Take, nested: set[str]) -> None:
        self._path = path
        self._take = take
        self._nested = nested
        self._open: list[int] = []
        self._calls = 0
        self._level = functorch_level()

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if functorch_level() != self._level:
            self._open.append(-1)
            return
        if self._open:
            self._nested.add(self._path)
        self._open.append(self._calls)
        self._calls += 1

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        is_wanted = self._open.pop() == 0 and not raised
        return self._take(self._path, value, module) if is_wanted else None


@contextmanager
def watch_modules(
    modules: Collection[tuple[str, nn.Module]],
    take: Take,
    nested: set[str],
    *,
    careful: bool,
) -> Iterator[None]:
    """While entered, hand what the first call of each module returns to ``take(path, value, module)``.

    Args:
        modules: the modules by path.
        take: where values go.
        nested: modules that call themselves, of which more is watched; filled if ``careful``.
        careful: find out which do.

    """
    with ModuleHooks() as hooks:
        for path, module in modules:
            if careful or path in nested:
                hooks.around(module, _FirstCall(path, take, nested))
            else:
                hooks.after(module, _FirstReturned(path, take))
        yield
