"""Opens and closes scopes as modules are called, and has the recorder on where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from .compiling import Places
from .fast_paths import TAKES_NOTE
from .module_hooks import ModuleHooks
from .recorder import Recorder
from .tracked import plain

__all__ = ["Calls", "Only", "Scopes"]


class Only(NamedTuple):
    """The part of a model that a request needs to be recorded.

    Attributes:
        scopes: paths of the modules in whose forwards operations are recorded.
        modules: paths of these, and of the modules that were seen to be called there.

    """

    scopes: frozenset[str]
    modules: tuple[str, ...]


class Calls:
    """Which modules were called.

    Attributes:
        callers: path of a module -> the scopes it was called in.
        started: path of a module -> how many values were there when it was first called.
        foreign: scopes that cannot be recorded alone (see :class:`.dependents.Dependents`).
        places: where operations were, for compiled code.
        constants: the plain arguments of operations.

    """

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self.count = count
        self.callers: dict[str, set[str]] = {}
        self.started: dict[str, int] = {}
        self.foreign: set[str] = set()
        self.places: Places = {}
        self.constants: dict[str, tuple[str, ...]] = {}

    def add(self, path: str, scope: str | None) -> None:
        """Note that the module at ``path`` is called by the forward of ``scope``."""
        if path not in self.started:
            self.started[path] = self.count() if self.count else 0
        if scope is not None:
            self.callers.setdefault(path, set()).add(scope)


class Scopes:
    """Tells a recorder which modules run, and switches it on where operations are recorded.

    Args:
        recorder: who is told.
        is_leaf: whether a module is not looked into.
        only: the scopes to record in; ``None`` for all.
        calls: filled with who calls whom.

    """

    def __init__(
        self,
        recorder: Recorder,
        is_leaf: Callable[[nn.Module, str], bool],
        only: Only | None = None,
        calls: Calls | None = None,
    ) -> None:
        self._recorder = recorder
        self._is_leaf = is_leaf
        self._only = only
        self._open: list[_Open] = []
        self._recording = False
        self._calls = calls or Calls()

    def __enter__(self) -> Scopes:
        if self._only is None:
            self._switch(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._switch(False)
        self._calls.foreign |= self._recorder.foreign
        self._calls.places.update(self._recorder.places)
        self._calls.constants.update(self._recorder.constants)

    def _switch(self, on: bool) -> None:
        if on and not self._recording:
            self._recorder.__enter__()  # type: ignore[no-untyped-call]
        elif self._recording and not on:
            self._recorder.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._recording = on

    def _follow(self) -> None:
        """Have the recorder on exactly while the forward of a wanted scope runs."""
        if self._only is not None:
            self._switch(bool(self._open) and self._open[-1].scope in self._only.scopes)

    def watch(self, hooks: ModuleHooks, modules: Iterable[tuple[str, nn.Module]]) -> None:
        """Open and close a scope at each call of each of ``modules``."""
        closed: set[str] = set()
        for path, module in modules:
            if _is_inside(path, closed):
                continue
            is_leaf = path != "" and self._is_leaf(module, path)
            if is_leaf and isinstance(module, TAKES_NOTE):
                closed.add(path)
            hooks.around(module, _Call(self, path, is_leaf))

    def open(self, module: nn.Module, path: str, is_leaf: bool, args: Any, kwargs: Any) -> Any:
        """Begin a call."""
        recorder = self._recorder
        inside_leaf = bool(self._open) and self._open[-1].scope is None
        name: str | None
        if is_leaf and not inside_leaf:
            name = recorder.enter_leaf(path, args, kwargs)
        else:
            name = recorder.enter_call(path)
        self._calls.add(path, self._open[-1].scope if self._open else None)
        scope = None if is_leaf or inside_leaf else path
        self._open.append(_Open(module, name, scope, is_leaf and not inside_leaf))
        recorder.enter_scope(module, scope)
        self._follow()
        # What a leaf does with sizes is its own business.
        return (plain(args), plain(kwargs)) if is_leaf else None

    def close(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        """End a call."""
        entry = self._close(module)
        if entry is None or raised or entry.name is None:
            return None
        if entry.is_leaf:
            return self._recorder.leave_leaf(entry.name, value, module)
        self._recorder.leave_call(entry.name, value, module)
        return None

    def _close(self, module: nn.Module) -> _Open | None:
        """Close the scope of ``module`` and those that an exception left open inside it."""
        if all(entry.module is not module for entry in self._open):
            return None
        self._recorder.leave_scope(module)
        entry = self._open.pop()
        while entry.module is not module:
            entry = self._open.pop()
        self._follow()
        return entry


class _Open(NamedTuple):
    """A call that has begun."""

    module: nn.Module
    name: str | None
    scope: str | None
    """Its path; ``None`` for a leaf, and inside one."""
    is_leaf: bool


class _Call:
    """Tells the scopes of the calls of one module."""

    def __init__(self, scopes: Scopes, path: str, is_leaf: bool) -> None:
        self._scopes = scopes
        self._path = path
        self._is_leaf = is_leaf

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return self._scopes.open(module, self._path, self._is_leaf, args, kwargs)

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        return self._scopes.close(module, value, raised=raised)


def _is_inside(path: str, closed: set[str]) -> bool:
    parts = path.split(".") if closed else ()
    return any(".".join(parts[:depth]) in closed for depth in range(1, len(parts)))
