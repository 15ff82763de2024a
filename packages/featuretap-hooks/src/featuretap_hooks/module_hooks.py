"""Forward hooks that are there only during one forward, and know their thread.

Hooks, and not wrapped methods: ``child.forward(x)`` belongs to the caller's scope, as in fx. Another
thread that runs the same model passes through them unseen.

``nn.TransformerEncoderLayer`` takes another numerical path when it sees hooks on itself or inside, so
its ``forward`` is wrapped instead, and nothing inside it is hooked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from sys import exc_info
from threading import get_ident
from types import TracebackType
from typing import Any, Protocol

from torch import nn

from featuretap.untouched import HookKey

from ._compat import add_hooks, remove_hooks

__all__ = ["Around", "ModuleHooks"]

_LOOKS_FOR_HOOKS = (nn.TransformerEncoderLayer,)
_LOCK = threading.Lock()


class Around(Protocol):
    """What is told of each call of a module."""

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """See the arguments; may return others, as a pair."""

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        """See what was returned; may return something else."""


class ModuleHooks:
    """Watches calls of modules in this thread until it is left, whatever happened."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self._hooked: list[tuple[nn.Module, HookKey]] = []
        self._wrapped: list[tuple[nn.Module, _Watcher]] = []

    def after(
        self, module: nn.Module, call: Callable[[Any], None], fail: Callable[[], None]
    ) -> None:
        """Have ``call`` see what each call of ``module`` returns, and ``fail`` be told if it raises."""
        if isinstance(module, _LOOKS_FOR_HOOKS):
            self._wrap(module, _Only(call, fail))
            return
        thread = self._thread

        def hook(_module: nn.Module, _args: Any, value: Any) -> None:
            if get_ident() == thread:
                if value is None and exc_info()[1] is not None:
                    fail()
                else:
                    call(value)

        self._add(module, None, hook)

    def around(self, module: nn.Module, watcher: Around) -> None:
        """Have ``watcher`` see each call of ``module``, also if it raises."""
        if isinstance(module, _LOOKS_FOR_HOOKS):
            self._wrap(module, watcher)
            return
        thread = self._thread
        # What the user's own hooks do is the inside of the module, so ours come first and last.
        handling: list[BaseException | None] = []

        # Another thread that runs the module may be between the two registries that these are in.
        def before(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if get_ident() != thread:
                return None
            handling.append(exc_info()[1])
            return watcher.before(module, args, kwargs)

        def after(module: nn.Module, _args: Any, value: Any) -> Any:
            if get_ident() != thread or not handling:
                return None
            # While something else is handled than when the call began, the forward raised.
            return watcher.after(module, value, raised=exc_info()[1] is not handling.pop())

        self._add(module, before, after)

    def _add(
        self, module: nn.Module, before: Callable[..., Any] | None, after: Callable[..., Any]
    ) -> None:
        key = HookKey()
        self._hooked.append((module, key))
        add_hooks(module, key, before, after)

    def _wrap(self, module: nn.Module, around: Around) -> None:
        watcher = _Watcher(self._thread, around)
        with _LOCK:
            wrapper = vars(module).get("forward")
            if not isinstance(wrapper, _Wrapper):
                wrapper = _Wrapper(module)
                vars(module)["forward"] = wrapper
            wrapper.watchers.append(watcher)
        self._wrapped.append((module, watcher))

    def __enter__(self) -> ModuleHooks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for module, key in self._hooked:
            remove_hooks(module, key)
        if not self._wrapped:
            return
        with _LOCK:
            for module, watcher in self._wrapped:
                wrapper = vars(module)["forward"]
                wrapper.watchers.remove(watcher)
                if not wrapper.watchers:
                    wrapper.remove()


class _Only:
    """Tells a function what was returned, and another of a failure."""

    def __init__(self, call: Callable[[Any], None], fail: Callable[[], None]) -> None:
        self._call = call
        self._fail = fail

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        pass

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> None:
        if raised:
            self._fail()
        else:
            self._call(value)


class _Watcher:
    def __init__(self, thread: int, around: Around) -> None:
        self.thread = thread
        self.around = around


class _Wrapper:
    """Stands for ``module.forward`` while somebody watches it.

    Attributes:
        replaced: the ``forward`` that the module has of its own, if it has one.
        watchers: who watches.

    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.replaced = vars(module).get("forward")
        self._forward = module.forward
        self.watchers: list[_Watcher] = []

    def remove(self) -> None:
        """Put back what was there."""
        if self.replaced is None:
            del vars(self._module)["forward"]
        else:
            vars(self._module)["forward"] = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = [w.around for w in self.watchers if w.thread == get_ident()]
        for around in here:
            args, kwargs = around.before(self._module, args, kwargs) or (args, kwargs)
        try:
            value = self._forward(*args, **kwargs)
        except Exception:
            for around in reversed(here):
                around.after(self._module, None, raised=True)
            raise
        for around in here:
            changed = around.after(self._module, value, raised=False)
            value = value if changed is None else changed
        return value
