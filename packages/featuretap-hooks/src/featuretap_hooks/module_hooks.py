"""Forward hooks that are there only during one forward, and know their thread.

Hooks, and not wrapped methods: ``child.forward(x)`` belongs to the caller's scope, as in fx. Another
thread that runs the same model passes through them unseen.

``nn.TransformerEncoderLayer`` takes another numerical path when it sees hooks on itself or inside, so
its ``forward`` is wrapped instead, and nothing inside it is hooked. The hooks of a module that is
compiled in place would be compiled; there the call is wrapped.
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

from ._compat import add_hooks, is_compiled_in_place, remove_hooks

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
    """Watches calls of modules in this thread until it is left, whatever happened.

    Args:
        root: a module that is run uncompiled, also if it is compiled in place.

    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self._root = root
        self._thread = get_ident()
        self._hooked: list[tuple[nn.Module, HookKey]] = []
        self._wrapped: list[tuple[_Wrapper, _Watcher]] = []

    def after(
        self, module: nn.Module, call: Callable[[Any], None], fail: Callable[[], None]
    ) -> None:
        """Have ``call`` see what each call of ``module`` returns, and ``fail`` be told if it raises."""
        if self._sees_hooks(module):
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
        if self._sees_hooks(module):
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

    def _sees_hooks(self, module: nn.Module) -> bool:
        if isinstance(module, _LOOKS_FOR_HOOKS):
            return True
        return is_compiled_in_place(module) and module is not self._root

    def _wrap(self, module: nn.Module, around: Around) -> None:
        watcher = _Watcher(self._thread, around)
        with _LOCK:
            name = "forward" if module is self._root else _called(module)
            wrapper = vars(module).get(name)
            if not isinstance(wrapper, _Wrapper):
                wrapper = vars(module)[name] = _Wrapper(module, name)
            wrapper.watchers.append(watcher)
        self._wrapped.append((wrapper, watcher))

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
            for wrapper, watcher in self._wrapped:
                wrapper.watchers.remove(watcher)
                if not wrapper.watchers:
                    wrapper.remove()


def _called(module: nn.Module) -> str:
    return "_compiled_call_impl" if is_compiled_in_place(module) else "forward"


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
    """Stands for ``module.forward``, or the compiled call, while somebody watches it.

    Attributes:
        replaced: the ``forward`` that the module has of its own, if it has one.
        watchers: who watches.

    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module = module
        self._name = name
        self.replaced = vars(module).get(name)
        self._forward = getattr(module, name)
        self.watchers: list[_Watcher] = []

    def remove(self) -> None:
        """Put back what was there."""
        if self.replaced is None:
            del vars(self._module)[self._name]
        else:
            vars(self._module)[self._name] = self.replaced

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
