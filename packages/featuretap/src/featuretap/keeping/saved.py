"""Tensors as they were: content, size and memory, gradient, and what autograd knows of them."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import nn

from .. import _compat
from ..comparing import identical

__all__ = ["SavedTensor", "SavedTensors", "has_unmade", "is_unmade", "refuse_unmade", "version_of"]


class SavedTensor:
    """One tensor as it is now.

    Args:
        tensor: it is copied.

    """

    __slots__ = (
        *("_content", "_gradient", "_is_leaf", "_layout", "_memory", "_needs_gradient", "_place"),
        *("_version", "tensor"),
    )

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        # Another tensor in the same memory: it keeps size and strides when the first gets others.
        self._memory = tensor.detach()
        self._content = self._memory.clone()
        # Of the tensor itself: inside of a transform of torch.func the other one is in a wrapper.
        self._layout, self._place = _layout(tensor), _memory_of(tensor)
        self._version = version_of(tensor)
        self._is_leaf, self._needs_gradient = tensor.is_leaf, tensor.requires_grad
        gradient = tensor.grad if self._is_leaf else None
        self._gradient = None if gradient is None else SavedTensor(gradient)

    @property
    def is_written(self) -> bool:
        """Whether its content or size is another one now."""
        try:
            return not identical(self.tensor, self._content)
        except RuntimeError:
            # Inside of vmap there is no content that could be looked at.
            return version_of(self.tensor) != self._version

    @property
    def has_other_memory(self) -> bool:
        """Whether it was resized, or is in another place."""
        return _memory_of(self.tensor) != self._place

    def restore(self) -> None:
        """Put it back; for autograd nothing has happened."""
        tensor = self.tensor
        unseen = _compat.preserve_version(tensor)
        # Nothing outside of inference mode writes an inference tensor.
        with torch.inference_mode(tensor.is_inference()), torch.no_grad(), unseen:
            # A buffer that a result was written to would keep the graph of the forward alive.
            if self._is_leaf and not tensor.is_leaf and not tensor._is_view():
                tensor.detach_()
            if _layout(tensor) != self._layout:
                tensor.data = self._memory
            if self.is_written:
                tensor.copy_(self._content)
        if self._is_leaf and tensor.is_leaf:
            self._restore_gradient()

    def _restore_gradient(self) -> None:
        tensor, kept = self.tensor, self._gradient
        if tensor.requires_grad != self._needs_gradient:
            tensor.requires_grad_(self._needs_gradient)
        if tensor.grad is not (None if kept is None else kept.tensor):
            tensor.grad = None if kept is None else kept.tensor
        if kept is not None:
            kept.restore()


class SavedTensors:
    """Some tensors as they were when each was first saved; autograd may count writes meanwhile.

    Attributes:
        drew_random_numbers: whether what ran meanwhile drew from torch's generators.

    """

    def __init__(self) -> None:
        self.drew_random_numbers = False
        self._saved: dict[int, SavedTensor] = {}
        self._versions = ExitStack()

    def save(self, tensor: torch.Tensor) -> None:
        """Keep a copy of ``tensor`` as it is now, unless one is kept already."""
        if id(tensor) not in self._saved and not is_unmade(tensor):
            self._saved[id(tensor)] = SavedTensor(tensor)
            self._versions.enter_context(_compat.preserve_version(tensor))

    @property
    def has_other_memory(self) -> bool:
        """Whether one was resized, or is in another place."""
        return any(saved.has_other_memory for saved in self._saved.values())

    def restore(self) -> None:
        """Put them back, the last first: it may know a gradient of the forward, which another knows not."""
        for saved in reversed(self._saved.values()):
            saved.restore()
        self._versions.close()


def _layout(tensor: torch.Tensor) -> object:
    if tensor.layout is not torch.strided:
        return tensor.layout
    about = (tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
    return about, _compat.storage_id(tensor)


def version_of(tensor: torch.Tensor) -> int:
    """Return how often autograd has seen a tensor written; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _memory_of(tensor: torch.Tensor) -> object:
    return tensor.numel(), _compat.storage_id(tensor)


def is_unmade(tensor: torch.Tensor) -> bool:
    """Say whether ``tensor`` is of a lazy module, which makes it in its first forward."""
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


def has_unmade(module: nn.Module) -> bool:
    """Say whether ``module`` itself has such a tensor."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(is_unmade(tensor) for tensor in tensors if tensor is not None)


def refuse_unmade(model: nn.Module) -> None:
    """Refuse to run an example on a model with lazy modules: its first forward cannot be taken back.

    Raises:
        ValueError: that names the first of them.

    """
    for path, module in model.named_modules():
        if has_unmade(module):
            raise ValueError(
                f"{path!r} ({type(module).__name__}) makes its parameters in the first forward, and an "
                "example would be that: call the model once, then list its nodes or make the extractor"
            )
