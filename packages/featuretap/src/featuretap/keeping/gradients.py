"""Which tensors require gradients and which they have, as it was; their hooks and attributes."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch

from .. import _compat
from ..inspecting.containers import copied
from .put_back import restore_attributes

__all__ = ["GradientFlags", "Gradients"]

_REQUIRES_GRAD = attrgetter("requires_grad")


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
