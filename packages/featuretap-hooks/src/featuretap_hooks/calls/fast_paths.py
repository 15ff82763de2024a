"""Let attention layers of torch, and compiled modules, do what they do when nobody watches.

``nn.MultiheadAttention`` and the transformer layers leave their fused path, and with it the last bits
of their result, when a torch-function mode is on. What ``torch.compile`` made would compile the mode.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from featuretap._compat import compiled_module, is_compiled_in_place, no_torch_function
from featuretap.inspecting.reading import forward_of
from featuretap.inspecting.whose import is_our_module
from featuretap.keeping.put_back import is_own_hook

from .._compat import is_compiled_function, take_out_modes
from .module_hooks import Around, ModuleHooks, unwatched

__all__ = ["fast_paths", "is_compiled", "layers_that_take_note", "takes_note", "without_modes"]

_TAKES_NOTE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class _Switch(threading.local):
    """Off while anybody in this thread wants it off; extractors may be nested."""

    def __init__(self) -> None:
        self.wishes = 0
        self.guard: Any = None

    def off(self) -> None:
        if self.wishes == 0:
            self.guard = no_torch_function()
            self.guard.__enter__()
        self.wishes += 1

    def on(self) -> None:
        self.wishes -= 1
        if self.wishes == 0:
            self.guard.__exit__(None, None, None)


_SWITCH = _Switch()


def is_compiled(module: nn.Module) -> bool:
    """Say whether the inside of ``module`` is compiled."""
    return (
        is_compiled_in_place(module)
        or compiled_module(module) is not None
        or is_compiled_function(inspect.getattr_static(module, "forward", None))
    )


def takes_note(module: nn.Module) -> bool:
    """Say whether ``module`` would notice a torch-function mode, so that nobody looks inside."""
    return _is_attention(module) or is_compiled(module)


def _is_attention(module: nn.Module) -> bool:
    """Say whether a call comes to the forward of one of these layers: a subclass may have its own."""
    if not isinstance(module, _TAKES_NOTE):
        return False
    function = forward_of(module).function
    if is_our_module(getattr(function, "__module__", None)):
        return True
    code = getattr(function, "__code__", None)
    return code is None or not {"super", "forward"}.isdisjoint(code.co_names)


def layers_that_take_note(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that would notice a torch-function mode; of what is compiled the outermost.

    A model that is compiled itself is none: it is run as it was before.
    """
    if _is_attention(model):
        yield model
    for child in model.children():
        if is_compiled(child):
            yield child
        else:
            yield from layers_that_take_note(child)


@contextmanager
def fast_paths(layers: Collection[nn.Module]) -> Iterator[None]:
    """Have our torch-function modes off inside ``layers``, while entered."""
    with ModuleHooks() as hooks, _FastPaths() as paths:
        for layer in layers:
            hooks.around(layer, _Uncompiled() if is_compiled(layer) else paths)
        yield


def without_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` so that it runs without our modes and hooks."""

    def run(*args: Any, **kwargs: Any) -> Any:
        put_back = take_out_modes(is_own_hook)
        try:
            with unwatched():
                return function(*args, **kwargs)
        finally:
            put_back()

    return run


class _Uncompiled(Around):
    """Keeps our torch-function modes out of compiled code."""

    def __init__(self) -> None:
        self._open: list[Callable[[], None]] = []

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._open.append(take_out_modes(is_own_hook))

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> None:
        if self._open:
            self._open.pop()()


class _FastPaths(Around):
    """Switches our torch-function modes off inside the layers that would notice them."""

    must_wrap = True

    def __init__(self) -> None:
        self._inside = 0

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Switch off."""
        self._inside += 1
        _SWITCH.off()

    def after(self, module: nn.Module | None, value: Any, *, raised: bool) -> None:
        """Switch on."""
        if self._inside:
            self._inside -= 1
            _SWITCH.on()

    def __enter__(self) -> _FastPaths:
        return self

    def __exit__(self, *_: object) -> None:
        while self._inside:
            self.after(None, None, raised=True)
