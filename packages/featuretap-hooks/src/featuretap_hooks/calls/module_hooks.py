"""Watches calls of modules, only during one forward and only in its thread.

Two means. A *hook* is what torch runs around a module's forward; what the user's own hooks do is the
inside of the module, so ours come first and last. A *wrapped forward* stands in the instance for
``forward`` where nobody else hooks: torch's path for hooks costs five times as much. It acts only when
the module is called: ``child.forward(x)`` belongs to the caller's scope, as in fx. Another thread that
runs the same model passes through either unseen.

``nn.TransformerEncoderLayer`` takes another numerical path when it sees hooks on itself or inside, and
the hooks of a module that is compiled in place would be compiled; these are always wrapped. So is the
whole call of a module that has backward hooks: torch puts these on its output after all other hooks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from sys import _getframe, exc_info
from threading import get_ident
from typing import Any

from torch import nn

from featuretap._compat import hooks_of_every_module, is_compiled_in_place, is_compiling
from featuretap.keeping.put_back import HookKey

from .._compat import (
    add_hooks,
    has_backward_hooks,
    is_called_plainly,
    is_failing,
    remove_hooks,
)
from .copied_hooks import OwnHook
from .wrapper import Watcher, Wrapper

__all__ = ["Around", "ModuleHooks", "sees_hooks", "unwatched"]

_LOOKS_FOR_HOOKS = (nn.TransformerEncoderLayer,)
_LOCK = threading.Lock()


class Around:
    """What is told of each call of a module.

    Attributes:
        must_wrap: whether the layer around the module must see no hooks on it.

    """

    __slots__ = ()
    must_wrap = False

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """See the arguments; may return others, as a pair."""

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> Any:
        """See what was returned; may return something else."""

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run ``forward``, and see both sides of it."""
        args, kwargs = self.before(module, args, kwargs) or (args, kwargs)
        try:
            value = forward(*args, **kwargs)
        except BaseException:
            self.after(module, None, raised=True)
            raise
        changed = self.after(module, value, raised=False)
        return value if changed is None else changed


class ModuleHooks:
    """Watches calls of modules in this thread until it is left, whatever happened.

    Args:
        root: a module that is run uncompiled, also if it is compiled in place.
        may_wrap: whether a forward may be wrapped where hooks would do.

    """

    def __init__(self, root: nn.Module | None = None, *, may_wrap: bool = False) -> None:
        self._root = root
        self._thread = get_ident()
        self._hooked: list[tuple[nn.Module, HookKey, Callable[..., Any] | None, Any]] = []
        self._wrapped: list[tuple[Wrapper, Watcher]] = []
        # ``torch.export`` stands proxies for modules, which a wrapped forward would not know.
        self._may_wrap = may_wrap and not is_compiling() and not any(hooks_of_every_module())

    def after(self, module: nn.Module, watcher: Around) -> None:
        """Have ``watcher``, which takes no note of arguments, see each call of ``module`` end."""
        name = sees_hooks(module, self._root)
        if name is not None:
            self._wrap([(module, name, (self._thread, watcher.call))])
            return
        thread, is_proxied = self._thread, is_compiling()

        def hook(called: nn.Module, _args: Any, value: Any) -> Any:
            if get_ident() == thread and (called is module or is_proxied):
                has_error = not is_proxied and exc_info()[1] is not None
                raised = has_error and is_failing(_getframe(1))
                return watcher.after(module, value, raised=raised)
            return None

        self._add(module, None, hook)

    def around(self, module: nn.Module, watcher: Around) -> None:
        """Have ``watcher`` see each call of ``module``, also if it raises."""
        self.around_each([(module, watcher)])

    def around_each(self, watchers: Iterable[tuple[nn.Module, Around]]) -> None:
        """Have each watcher see each call of its module."""
        may_wrap, wrapped = self._may_wrap, []
        for module, watcher in watchers:
            attributes = module.__dict__
            # A property is found before what an instance has of its own.
            is_plain = may_wrap and type(getattr(type(module), "forward", None)) is not property
            is_nobodys = is_plain and type(attributes.get("forward")) in _NOBODYS
            if is_nobodys and is_called_plainly(attributes):
                name: str | None = "forward"
            else:
                name = sees_hooks(module, self._root)
            if name is None and watcher.must_wrap and not is_compiling():
                name = "forward"
            if name is None:
                self._hook(module, watcher)
            else:
                wrapped.append((module, name, (self._thread, watcher.call)))
        if wrapped:
            self._wrap(wrapped)

    def _hook(self, module: nn.Module, watcher: Around) -> None:
        thread, is_proxied = self._thread, is_compiling()
        handling: list[BaseException | None] = []

        # Another thread that runs the module may be between the two registries that these are in, and a
        # shallow copy shares them.
        def before(called: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if get_ident() != thread or not (called is module or is_proxied):
                return None
            handling.append(exc_info()[1])
            return watcher.before(module, args, kwargs)

        def after(called: nn.Module, _args: Any, value: Any) -> Any:
            is_other = get_ident() != thread or not (called is module or is_proxied)
            if is_other or not handling:
                return None
            # While something else is handled than when the call began, the forward raised.
            return watcher.after(module, value, raised=exc_info()[1] is not handling.pop())

        self._add(module, before, after)

    def _add(
        self, module: nn.Module, before: Callable[..., Any] | None, after: Callable[..., Any]
    ) -> None:
        key = HookKey()
        if not is_compiling():
            before, after = before and OwnHook(before), OwnHook(after)
        self._hooked.append((module, key, before, after))
        add_hooks(module, key, before, after)

    def _wrap(self, watched: Iterable[tuple[nn.Module, str, Watcher]]) -> None:
        """Have what is watched, an attribute of a module, stand for what it was."""
        with _LOCK:
            for module, name, watcher in watched:
                attributes = module.__dict__
                wrapper = attributes.get(name)
                if type(wrapper) is not Wrapper:
                    wrapper = Wrapper(module, name, wrapper)
                # Noted first: a KeyboardInterrupt may come between any two of these.
                self._wrapped.append((wrapper, watcher))
                wrapper.watchers += (watcher,)
                attributes[name] = wrapper

    def __enter__(self) -> ModuleHooks:
        _ACTIVE.hooks.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no more; done again where a KeyboardInterrupt came into the first time."""
        if self._wrapped or self._hooked:
            self._take_off()
            self._wrapped, self._hooked = [], []
        if self in _ACTIVE.hooks:
            _ACTIVE.hooks.remove(self)

    def let_go(self) -> None:
        """Watch no calls that begin from now on; those that run are still seen to end."""
        # Of hooks torch would not know the second when it comes to it.
        if not self._hooked:
            self._take_off()
            self._wrapped = []

    def _take_off(self) -> None:
        for module, key, before, _ in self._hooked:
            remove_hooks(module, key, before=before is not None)
        if not self._wrapped:
            return
        with _LOCK:
            for wrapper, watcher in self._wrapped:
                wrapper.remove(watcher)

    def _put_on(self) -> None:
        for module, key, before, after in self._hooked:
            add_hooks(module, key, before, after)
        taken_off, self._wrapped = self._wrapped, []
        self._wrap((wrapper.module, wrapper.name, watcher) for wrapper, watcher in taken_off)


class _Active(threading.local):
    """Who watches modules in this thread, innermost last."""

    def __init__(self) -> None:
        self.hooks: list[ModuleHooks] = []


_ACTIVE = _Active()


@contextmanager
def unwatched() -> Iterator[None]:
    """While entered, modules are as they are for others: what compiles them must find nothing of ours."""
    # Out of the list, so that who does this meanwhile leaves them off.
    active, _ACTIVE.hooks = _ACTIVE.hooks, []
    for hooks in reversed(active):
        hooks._take_off()
    try:
        yield
    finally:
        _ACTIVE.hooks = active
        for hooks in active:
            hooks._put_on()


def sees_hooks(module: nn.Module, root: nn.Module | None = None) -> str | None:
    """Name the attribute to wrap, if ``module`` must not be hooked; ``root`` is run uncompiled."""
    if is_compiled_in_place(module) and module is not root:
        return "_compiled_call_impl"
    if has_backward_hooks(module) and not is_compiling():
        return "_call_impl"
    return "forward" if isinstance(module, _LOOKS_FOR_HOOKS) else None


# What a module has for a ``forward`` of its own where that is its class's, watched or not.
_NOBODYS = (type(None), Wrapper)
