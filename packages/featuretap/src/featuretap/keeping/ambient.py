"""What a forward may switch for its thread or process: gradients, autocast, the default dtype, hooks."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch

from .. import _compat
from ..inspecting.containers import copied
from .put_back import restore_attributes

__all__ = ["Ambient", "GradientFlags", "Gradients", "HooksOfEveryModule"]


_REQUIRES_GRAD = attrgetter("requires_grad")


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
        self._tensors = list(tensors)
        self._flags = list(map(_REQUIRES_GRAD, self._tensors))

    @property
    def is_changed(self) -> bool:
        """Whether a tensor requires gradients that did not, or no longer does."""
        return list(map(_REQUIRES_GRAD, self._tensors)) != self._flags

    def restore(self) -> None:
        """Set the flags that were changed back."""
        for tensor, requires_grad in zip(self._tensors, self._flags, strict=True):
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)


class Gradients(GradientFlags):
    """Which of some tensors require gradients, and which they have; their hooks and attributes.

    Nothing is made for a tensor that has none of these: a model has hundreds, and some are looked at in
    each call.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__(tensors)
        tensors = self._tensors
        self._gradients = [t.grad if t.is_leaf else None for t in tensors]
        self._hooks = [
            [set(hooks) if hooks else None for hooks in kind]
            for kind in _compat.hooks_of_tensors(tensors)
        ]
        self._attributes = [copied(kept) if kept else None for kept in map(vars, tensors)]

    def restore(self) -> None:
        """Put back what was changed."""
        super().restore()
        for kind, before in zip(_compat.hooks_of_tensors(self._tensors), self._hooks, strict=True):
            for hooks, keys in zip(kind, before, strict=True):
                if hooks:
                    for key in hooks.keys() - (keys or ()):
                        del hooks[key]
        for tensor, attributes in zip(self._tensors, self._attributes, strict=True):
            restore_attributes(vars(tensor), attributes or {})
        for tensor, gradient in zip(self._tensors, self._gradients, strict=True):
            if tensor.is_leaf and tensor.grad is not gradient:
                tensor.grad = gradient


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
