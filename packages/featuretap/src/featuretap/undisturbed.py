"""Run a model on an example as if it had never run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from . import _compat
from .ambient import Ambient, GradientFlags
from .comparing import identical
from .faithful import RandomState, foreign_random_state
from .held import tensors_in
from .modules import ModuleTree
from .untouched import Untouched

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Put back what is changed inside: flags, attributes, hooks, tensors, random state, gradient mode.

    Every tensor of the modules is copied meanwhile.
    """
    untouched = [Untouched(module) for module in modules]
    stored = {id(tensor): tensor for module in modules for tensor in _tensors(module)}
    copies = [(tensor, tensor.detach().clone()) for tensor in stored.values()]
    random, (_, restore_foreign) = RandomState(), foreign_random_state()
    with ExitStack() as stack:
        stack.callback(restore_foreign)
        stack.callback(random.restore)
        stack.callback(GradientFlags(stored.values()).restore)
        stack.callback(Ambient().restore)
        for tensor, copy in copies:
            # Inference tensors count no versions, and nothing outside of inference mode writes them.
            if not tensor.is_inference():
                stack.enter_context(_compat.preserve_version(tensor))
                stack.callback(_put_back, tensor, copy)
        for content in untouched:
            stack.callback(content.restore)
        yield


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor of a model, also those in containers on its modules."""
    tree = ModuleTree(model)
    for tensors in tree.storages.values():
        yield from tensors
    for module in tree.paths.values():
        yield from tensors_in(module)


def _put_back(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    # By content, for what is written through ``.data`` counts no version.
    if not identical(tensor, copy):
        with torch.no_grad():
            tensor.copy_(copy)
