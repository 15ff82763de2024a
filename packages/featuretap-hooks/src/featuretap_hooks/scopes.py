"""Opens and closes scopes as modules are called, and has the recorder on where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from featuretap._compat import functorch_level, is_compiling
from featuretap.modules import LeafRule
from featuretap.signatures import has_own_call

from ._compat import pop_mode, push_mode
from .calls.fast_paths import is_compiled, takes_note
from .calls.module_hooks import Around, ModuleHooks
from .program import Places
from .recorder import Recorder
from .tracked import plain

__all__ = ["Calls", "Part", "Scopes"]


class Part(NamedTuple):
    """The part of a model that a request needs to be recorded.

    Attributes:
        scopes: paths of the modules in whose forwards operations are recorded; ``None`` for all.
        modules: path, module, and how its calls are watched: of these, and of those called there.
        names_inputs: whether tensors among the arguments of the model are nodes of it.
        calls_itself: whether the model is recorded and has a ``__call__`` of its own, which belongs to
            its forward as in fx.

    """

    scopes: frozenset[str] | None
    modules: Sequence[tuple[str, nn.Module, type[_Call]]]
    names_inputs: bool
    calls_itself: bool = False

    @classmethod
    def of(
        cls,
        scopes: frozenset[str] | None,
        modules: Mapping[str, nn.Module],
        is_leaf: LeafRule,
        *,
        names_inputs: bool = True,
    ) -> Part:
        """Find out which of ``modules`` are leaves, and leave out what cannot be hooked."""
        found: list[tuple[str, nn.Module, type[_Call]]] = []
        closed: tuple[str, ...] = ()
        compiled: tuple[str, ...] = ()
        calls_itself = "" in modules and has_own_call(modules[""])
        for path, module in modules.items():
            if path == "" and calls_itself:
                continue
            if compiled and path.startswith(compiled):
                continue
            is_closed = path != "" and takes_note(module)
            leaf = path != "" and (is_closed or is_leaf(module, path))
            if closed and path.startswith(closed):
                # The model may call it past the layer that it is in.
                found.append((path, module, _InnerLeafCall if leaf else _InnerCall))
            else:
                found.append((path, module, _how(module) if leaf else _Call))
            if is_closed:
                closed += (f"{path}.",)
                compiled += (f"{path}.",) if is_compiled(module) else ()
        return cls(scopes, found, names_inputs, calls_itself)


class Calls:
    """Which modules were called.

    Attributes:
        callers: path of a module -> the scopes it was called in.
        started: path of a module -> how many values were there when it was first called.
        went_deeper: whether something ran inside of a transform of torch.func.
        foreign: scopes that cannot be recorded alone (see :class:`.dependents.Dependents`).
        places: where operations were, for compiled code.
        functions: scope -> the names of its torch functions that compiled code counts.
        outputs: name of what a call returned -> path of the module, and how many calls were before it.
        constants: the plain arguments of operations.

    """

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self.count = count
        self.callers: dict[str, set[str]] = {}
        self.started: dict[str, int] = {}
        self.went_deeper = False
        self.foreign: set[str] = set()
        self.places: Places = {}
        self.functions: dict[str, list[str]] = {}
        self.outputs: dict[str, tuple[str, int]] = {}
        self._counts: dict[str, int] = {}
        self.constants: dict[str, tuple[str, ...]] = {}

    def add(self, path: str, scope: str | None, name: str | None) -> None:
        """Note that the forward of ``scope`` calls the module at ``path``, which will return ``name``."""
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        if name is not None:
            self.outputs[name] = (path, number)
        if path not in self.started:
            self.started[path] = self.count() if self.count else 0
        if scope is not None:
            self.callers.setdefault(path, set()).add(scope)


class Scopes:
    """Tells a recorder which modules run, and switches it on where operations are recorded.

    Args:
        recorder: who is told.
        scopes: those to record in; ``None`` for all.
        calls: filled with who calls whom.

    """

    def __init__(
        self, recorder: Recorder, scopes: frozenset[str] | None, calls: Calls | None
    ) -> None:
        self.recorder = recorder
        self._scopes = scopes
        self.opened: list[_Open] = []
        self.is_on = False
        self.calls = calls
        self._hooks: ModuleHooks | None = None

    def let_go(self, hooks: ModuleHooks) -> None:
        """Watch no more from the next call or return of a module on: the rest is of no interest.

        Not now, for torch puts the mode back when it has seen to the operation that was the last.
        """
        self._hooks = hooks
        self.recorder.finish()

    def end(self) -> None:
        """Have the recorder off for good, and watch no calls any more."""
        self._scopes = frozenset()
        self._switch(False)
        if self._hooks is not None:
            self._hooks.let_go()
            self._hooks = None

    def finish(self) -> None:
        """Be told that the forward is over, whatever happened."""
        try:
            self._switch(False)
        finally:
            self._switch(False)  # for a KeyboardInterrupt in the first
        if self.recorder.is_live:
            self.recorder.finish()
        if self.calls is not None:
            self.calls.foreign |= self.recorder.foreign
            self.calls.went_deeper |= self.recorder.went_deeper

    def _switch(self, on: bool) -> None:
        if on and not self.is_on:
            # Noted first: a KeyboardInterrupt may come between the two.
            self.is_on = True
            push_mode(self.recorder)
        # Where a mode of the model's own lies on top, ours stays on: then it does not listen.
        elif self.is_on and not on and pop_mode(self.recorder):
            self.is_on = False

    def _follow(self, scope: str | None) -> None:
        """Have the recorder on while the forward of a wanted scope runs."""
        if self._hooks is not None:
            self.end()
        self._switch(scope is not None and (self._scopes is None or scope in self._scopes))

    def watch(self, hooks: ModuleHooks, part: Part) -> None:
        """Open and close a scope at each call of each module of ``part``."""
        watched = part.modules
        if is_compiling():
            # Nothing may be wrapped, and the layer around such a module would see hooks.
            watched = [found for found in watched if not issubclass(found[2], _InnerCall)]
        hooks.around_each([(module, how(self, path)) for path, module, how in watched])

    def run(self, model: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Run the ``__call__`` of a model as if it were its forward."""
        _Call(self, "").call(model, call, args, kwargs)

    def open(self, module: nn.Module, path: str, is_leaf: bool, args: Any, kwargs: Any) -> Any:
        """Begin a call."""
        recorder = self.recorder
        if not recorder.is_live:
            self.end()
            return None
        outer = self.opened[-1] if self.opened else None
        is_leaf_call = is_leaf and (outer is None or outer.scope is not None)
        name: str | None
        if recorder.is_deeper:
            recorder.go_deeper()
            name = None
        elif is_leaf_call:
            name = recorder.enter_leaf(path, args, kwargs)
        else:
            name = recorder.enter_call(path)
        if self.calls is not None:
            # Compiled code counts returns: of a module that calls itself they come in another order.
            is_nested = any(entry.module is module for entry in self.opened)
            self.calls.add(path, outer.scope if outer else None, None if is_nested else name)
        scope = None if is_leaf or (outer is not None and outer.scope is None) else path
        self.opened.append(_Open(module, name, scope, is_leaf_call))
        recorder.enter_scope(module, scope)
        self._follow(scope)
        # What a leaf does with sizes is its own business.
        return _plain_arguments(args, kwargs) if is_leaf and recorder.has_tracked else None

    def close(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        """End a call."""
        if not raised and self.recorder.listening:
            # What is returned is used, by the forward that returns it.
            self.recorder.use(value)
        entry = self._close(module)
        if entry is None or raised or entry.name is None:
            return None
        if entry.is_leaf:
            return self.recorder.leave_leaf(entry.name, value, module)
        self.recorder.leave_call(entry.name, value, module)
        return None

    def _close(self, module: nn.Module) -> _Open | None:
        """Close the scope of ``module`` and those that an exception left open inside it."""
        opened = self.opened
        if not opened or (
            opened[-1].module is not module and all(entry.module is not module for entry in opened)
        ):
            return None
        entry = opened.pop()
        while entry.module is not module:
            entry = opened.pop()
        scope = opened[-1].scope if opened else None
        self.recorder.move_to(opened[-1].module if opened else None, scope)
        self._follow(scope)
        return entry


class _Open(NamedTuple):
    """A call that has begun."""

    module: nn.Module
    name: str | None
    scope: str | None
    """Its path; ``None`` for a leaf, and inside one."""
    is_leaf: bool


class _Call(Around):
    """Tells the scopes of the calls of one module."""

    __slots__ = ("_path", "_scopes")
    _is_leaf = False

    def __init__(self, scopes: Scopes, path: str) -> None:
        self._scopes = scopes
        self._path = path

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return self._scopes.open(module, self._path, self._is_leaf, args, kwargs)

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        return self._scopes.close(module, value, raised=raised)


class _LeafCall(_Call):
    """The same of a leaf."""

    __slots__ = ()
    _is_leaf = True


class _InnerCall(_Call):
    """The same of a module in a layer that nobody looks into, where it is not called by that."""

    __slots__ = ()
    must_wrap = True

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        opened = self._scopes.opened
        if opened and opened[-1].scope is None:
            return forward(*args, **kwargs)
        return super().call(module, forward, args, kwargs)


class _InnerLeafCall(_InnerCall):
    """The same of a leaf."""

    __slots__ = ()
    _is_leaf = True


class _LayerCall(_LeafCall):
    """The same of a leaf that calls no other module: most calls, so as little as possible is done."""

    __slots__ = ()

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        scopes = self._scopes
        recorder, opened = scopes.recorder, scopes.opened
        if not recorder.is_live:
            scopes.end()
            return forward(*args, **kwargs)
        if functorch_level() != recorder.level or (opened and opened[-1].scope is None):
            return super().call(module, forward, args, kwargs)
        name = recorder.enter_leaf(self._path, args, kwargs)
        if scopes.calls is not None:
            scopes.calls.add(self._path, opened[-1].scope if opened else None, name)
        if recorder.has_tracked:
            args, kwargs = plain(args), plain(kwargs)
        is_on = scopes.is_on and pop_mode(recorder)
        was_busy, recorder.busy = recorder.busy, True  # a function that is one node may call layers
        try:
            value = forward(*args, **kwargs)
        finally:
            recorder.busy = was_busy
            if is_on:
                push_mode(recorder)
        changed = recorder.leave_leaf(name, value, module)
        return value if changed is None else changed


def _how(leaf: nn.Module) -> type[_LeafCall]:
    is_layer = not leaf._modules and type(leaf).__module__.startswith("torch.nn.modules.")
    return _LayerCall if is_layer else _LeafCall


def _plain_arguments(args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    bare, bare_kwargs = plain(args), plain(kwargs)
    return None if bare is args and bare_kwargs is kwargs else (bare, bare_kwargs)
