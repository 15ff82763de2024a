"""Let attention layers of torch take the path that they take when nobody watches.

``nn.MultiheadAttention`` and the transformer layers leave their fused path, and with it the last bits
of their result, when a torch-function mode is on.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ._compat import no_torch_function
from .module_hooks import ModuleHooks

__all__ = ["FastPaths"]

_TAKE_NOTE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class FastPaths:
    """Switches our torch-function modes off inside the layers that would notice them."""

    def __init__(self) -> None:
        self._guards: list[Any] = []

    def watch(self, hooks: ModuleHooks, module: nn.Module) -> None:
        """Watch ``module`` and what is inside."""
        if isinstance(module, _TAKE_NOTE):
            hooks.around(module, self)
            return
        for child in module.children():
            self.watch(hooks, child)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Switch off."""
        self._guards.append(no_torch_function())
        self._guards[-1].__enter__()

    def after(self, module: nn.Module, value: Any, *, raised: bool) -> None:
        """Switch on."""
        if self._guards:
            self._guards.pop().__exit__(None, None, None)

    def __enter__(self) -> FastPaths:
        return self

    def __exit__(self, *_: object) -> None:
        while self._guards:
            self._guards.pop().__exit__(None, None, None)
