"""What a forward may switch for its thread or process: gradients, autocast, the default dtype, hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from . import _compat
from .containers import copied
from .put_back import restore_attributes

__all__ = ["Ambient", "GradientFlags", "Gradients", "HooksOfEveryModule"]


class Ambient:
    """The switches as they are now. A forward that is left half-way may not have turned them back."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._autocast = _compat.autocast_state()
        self._settings = [read() for read, _ in _compat.process_settings()]

    @property
    def settings_changed(self) -> bool:
        """Whether a setting of the whole process is another one now."""
        return self._settings != [read() for read, _ in _compat.process_settings()]

    def restore(self) -> None:
        """Turn back what was switched since."""
        for (read, write), value in zip(_compat.process_settings(), self._settings, strict=True):
            if read() != value:
                write(value)
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

    @property
    def is_changed(self) -> bool:
        """Whether a tensor requires gradients that did not, or no longer does."""
        return any(tensor.requires_grad != flag for tensor, flag in self._flags)

    def restore(self) -> None:
        """Set the flags that were changed back."""
        for tensor, requires_grad in self._flags:
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)


class Gradients(GradientFlags):
    """Which of some tensors require gradients, and which they have; their hooks and attributes."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__(tensors)
        self._gradients = [(t, t.grad) for t, _ in self._flags if t.is_leaf]
        self._hooks = [(t, [set(hooks) for hooks in _hooks_of(t)]) for t, _ in self._flags]
        self._attributes = [(vars(t), copied(vars(t))) for t, _ in self._flags]

    def restore(self) -> None:
        """Put back what was changed."""
        super().restore()
        for tensor, kept in self._hooks:
            for hooks, keys in zip(_hooks_of(tensor), kept, strict=True):
                for key in hooks.keys() - keys:
                    del hooks[key]
        for attributes, before in self._attributes:
            restore_attributes(attributes, before)
        for tensor, gradient in self._gradients:
            if tensor.is_leaf and tensor.grad is not gradient:
                tensor.grad = gradient


def _hooks_of(tensor: torch.Tensor) -> list[dict[int, Any]]:
    return [{} if hooks is None else hooks for hooks in _compat.hooks_of_tensor(tensor)]


class HooksOfEveryModule:
    """The hooks that run in the calls of all modules of the process, as they are now."""

    def __init__(self) -> None:
        self._registries = _compat.hooks_of_every_module()
        self._before = [set(registry) for registry in self._registries]

    def forget_new(self) -> bool:
        """Take out those that were registered since; say whether there were any."""
        if not any(self._registries):
            return False
        both = zip(self._registries, self._before, strict=True)
        new = [(now, key) for now, before in both for key in now.keys() - before]
        for registry, key in new:
            del registry[key]
        return bool(new)
