"""Run a model on an example as if it had never run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..inspecting.reading import forward_of
from ..modules import ModuleTree
from .ambient import Ambient
from .gradients import Gradients
from .held import tensors_in
from .held_content import content_of_given
from .outside import tensors_outside
from .random_numbers import RandomState, foreign_random_state
from .saved import SavedTensors, refuse_unmade
from .untouched import Untouched

__all__ = ["ONE_AT_A_TIME", "undisturbed"]

# Held while a model is traced or runs on an example. Two threads must not switch one model at once, and
# fx patches ``nn.Module`` for the whole process: two traces would undo that in the wrong order.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def undisturbed(*modules: nn.Module, given: Any = ()) -> Iterator[None]:
    """Put back what is changed inside: flags, attributes, hooks, tensors, gradients, random state, modes.

    Every tensor of the modules is copied meanwhile.

    Args:
        modules: the model, and others that run.
        given: arguments; what they hold besides tensors is put back.

    Raises:
        ValueError: if a lazy module has not made its parameters yet.

    """
    for module in modules:
        refuse_unmade(module)
    untouched = [Untouched(module) for module in modules]
    saved = SavedTensors()
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for module in modules:
        for tensor in _tensors(module):
            saved.save(tensor)
    for parameter in parameters:
        if parameter.is_leaf and parameter.grad is not None:
            saved.save(parameter.grad)
    random, (_, restore_foreign) = RandomState(), foreign_random_state()
    with ExitStack() as stack:
        stack.callback(restore_foreign)
        stack.callback(random.restore)
        # After the tensors: one that an optimizer writes is saved with the gradient of the forward.
        stack.callback(Gradients(parameters).restore)
        stack.callback(saved.restore)
        for content in untouched:
            stack.callback(content.restore)
        stack.callback(Ambient().restore)
        stack.callback(content_of_given(given).restore)
        yield


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor of a model, also those in containers, and outside where its code finds them."""
    tree = ModuleTree(model)
    yield from tensors_outside(map(forward_of, tree.paths.values()))
    for tensors in tree.storages.values():
        yield from tensors
    for module in tree.paths.values():
        yield from tensors_in(module)
