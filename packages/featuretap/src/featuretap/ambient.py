"""What a forward may switch for its whole thread or process: gradients, autocast, the default dtype."""

from __future__ import annotations

import torch

from . import _compat

__all__ = ["Ambient"]


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
