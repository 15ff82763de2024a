"""What stands in a module for its ``forward`` while somebody watches its calls.

It acts only when the module is called: ``child.forward(x)`` belongs to the caller's scope, as in fx.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from sys import _getframe
from threading import get_ident
from typing import Any, TypeAlias

from torch import nn

from .._compat import CALLERS_OF_FORWARD

__all__ = ["Watcher", "Wrapper", "is_wrapped"]

# The thread that a forward runs in, and what runs there in the place of the forward of a module.
Watcher: TypeAlias = tuple[int, Callable[[nn.Module, Callable[..., Any], Any, Any], Any]]


class Wrapper:
    """Stands for ``module.forward``, or the compiled call, while somebody watches it.

    Attributes:
        module: whose it is.
        name: the attribute that it is.
        replaced: the ``forward`` that the module has of its own, if it has one.
        watchers: who watches.

    """

    __slots__ = ("_copies", "_forward", "module", "name", "replaced", "watchers")

    def __init__(self, module: nn.Module, name: str, replaced: Any) -> None:
        self.module = module
        self.name = name
        self.replaced = replaced
        self._forward = getattr(module, name)
        self.watchers: tuple[Watcher, ...] = ()
        self._copies: tuple[nn.Module, ...] = ()

    def remove(self, watcher: Watcher) -> None:
        """Let one of those who watch go; put back what was there after the last."""
        if self.watchers == (watcher,):
            self.watchers = ()
        else:
            self.watchers = tuple(other for other in self.watchers if other is not watcher)
        if self.watchers:
            return
        self._put_back(self.module.__dict__)
        for copied in self._copies:
            self._put_back(copied.__dict__)

    def _put_back(self, attributes: dict[str, Any]) -> None:
        if attributes.get(self.name) is not self:
            return
        if self.replaced is None:
            del attributes[self.name]
        else:
            attributes[self.name] = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, watched where the module was called in a thread of those who watch."""
        frame = _getframe(1)
        if frame.f_code not in CALLERS_OF_FORWARD:
            return self._forward(*args, **kwargs)
        if frame.f_locals["self"] is not self.module:
            return self._of(frame.f_locals["self"])(*args, **kwargs)
        here, run, watchers = get_ident(), self._forward, self.watchers
        if len(watchers) == 1:
            thread, call = watchers[0]
            return call(self.module, run, args, kwargs) if thread == here else run(*args, **kwargs)
        # Who came later is further outside.
        calls = [call for thread, call in watchers if thread == here]
        for call in calls[:-1]:
            run = partial(_run, call, self.module, run)
        return calls[-1](self.module, run, args, kwargs) if calls else run(*args, **kwargs)

    def _of(self, other: nn.Module) -> Callable[..., Any]:
        """Return the same of a shallow copy, which was made while somebody watched the module."""
        self._put_back(other.__dict__)
        if self.replaced is not None:
            return self.replaced  # type: ignore[no-any-return]
        return partial(getattr(type(other), self.name), other)

    # What is looked up on a forward: its signature, its code, its globals.

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._forward)

    def __getattr__(self, name: str) -> Any:
        if name == "_forward":
            raise AttributeError(name)
        return getattr(self._forward, name)

    def __deepcopy__(self, memo: Any) -> Any:
        if self.replaced is not None:
            return copy.deepcopy(self.replaced, memo)
        # Of the copy it stands for its class's forward until it is taken off, or called.
        self._copies += (memo[id(self.module)],) if id(self.module) in memo else ()
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (self.module, self.name)


def is_wrapped(forward: Any) -> bool:
    """Say whether ``forward`` stands for the one of a module that somebody watches."""
    return type(forward) is Wrapper


def _run(
    call: Callable[..., Any], module: nn.Module, forward: Any, *args: Any, **kwargs: Any
) -> Any:
    return call(module, forward, args, kwargs)
