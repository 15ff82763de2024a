"""One forward of a model, watched: in full, or only where a request needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from featuretap._compat import indexing_shown

from ._compat import call_uncompiled, functorch_level
from .findings import Findings
from .going_on import Maker
from .leftovers import make_plain
from .module_hooks import Around, ModuleHooks
from .patching import RecordingFunctions
from .recorder import Recorder
from .scopes import Calls, Part, Scopes
from .sinks import Sink
from .warm_caches import cold_caches

__all__ = ["run_watched", "watch_modules"]

# Takes a name, its value and what made it; may return what to exchange the value for.
Take: TypeAlias = Callable[[str, Any, Maker], Any]


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
    model = found.tree.model
    recorder = Recorder(found.tree, sink, confined=part.scopes is not None, notes=calls)
    scopes = Scopes(recorder, part.scopes, calls)
    try:
        with (
            RecordingFunctions(recorder, found.places),
            indexing_shown(),
            cold_caches(found.caches) if found.caches else nullcontext(),
            ModuleHooks(model, may_wrap=not found.own_code.rewires) as hooks,
            scopes,
        ):
            scopes.watch(hooks, part.modules)
            if part.names_inputs or kwargs or any(type(arg) is not torch.Tensor for arg in args):
                args, kwargs = found.arguments.watched(recorder, args, kwargs)
            else:
                recorder.mark(args)
            call_uncompiled(model)(*args, **kwargs)
    finally:
        recorder.finish()
        if recorder.has_tracked:
            make_plain(found.storing)


class _FirstReturned:
    """Takes what the first call of a module returned, where that is the first to end."""

    __slots__ = ("_failed", "_module", "_path", "_take")

    def __init__(self, path: str, module: nn.Module, take: Take) -> None:
        self._path = path
        self._module = module
        self._take = take
        self._failed = False

    def __call__(self, value: Any) -> Any:
        return None if self._failed else self._take(self._path, value, self._module)

    def fail(self) -> None:
        """Be told that a call raised, the first one if none returned before it."""
        self._failed = True


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
                first = _FirstReturned(path, module, take)
                hooks.after(module, first, first.fail)
        yield
