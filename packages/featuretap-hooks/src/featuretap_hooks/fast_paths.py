"""Let attention layers of torch take the path that they take when nobody watches.

``nn.MultiheadAttention`` and the transformer layers leave their fused path, and with it the last bits
of their result, when a torch-function mode is on.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ._compat import no_torch_function
from .module_hooks import ModuleHooks

__all__ = ["TAKES_NOTE", "fast_paths", "layers_that_take_note"]

TAKES_NOTE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


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


def layers_that_take_note(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost layers that would notice a torch-function mode."""
    if isinstance(module, TAKES_NOTE):
        yield module
        return
    for child in module.children():
        yield from layers_that_take_note(child)


@contextmanager
def fast_paths(layers: Collection[nn.Module]) -> Iterator[None]:
    """While entered, our torch-function modes are off inside ``layers``."""
    if not layers:
        yield
        return
    with ModuleHooks() as hooks, _FastPaths() as paths:
        for layer in layers:
            hooks.around(layer, paths)
        yield


class _FastPaths:
    """Switches our torch-function modes off inside the layers that would notice them."""

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
