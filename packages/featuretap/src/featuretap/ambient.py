"""What a forward may switch for its whole thread or process: gradients, autocast, the default dtype."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from . import _compat

__all__ = ["Ambient", "GradientFlags"]


class Ambient:
    """The switches as they are now. A forward that is left half-way may not have turned them back."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._autocast = _compat.autocast_state()

    def restore(self) -> None:
        """Turn back what was switched since."""
        if torch.is_grad_enabled() != self._grad:
            torch.set_grad_enabled(self._grad)
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        if _compat.autocast_state() != self._autocast:
            _compat.set_autocast_state(self._autocast)


class GradientFlags:
    """Which of some tensors require gradients. A forward may freeze parameters for a while."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._flags = [(tensor, tensor.requires_grad) for tensor in tensors]

    def restore(self) -> None:
        """Set the flags that were changed back."""
        for tensor, requires_grad in self._flags:
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
