"""The part of a model that a forward needs, for parameters that all take part in training."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

from torch import nn

from featuretap.modules import LeafRule
from featuretap.naming import join

from .calls.fast_paths import takes_note

__all__ = ["needed_part"]


def needed_part(
    model: nn.Module, ran: Collection[str], is_leaf: LeafRule
) -> dict[str, nn.Module | None]:
    """Return the children of ``model``, without the modules that did not run.

    A module of which only a part ran is stood in for by an empty one with that part. What a leaf uses of
    its children nobody sees, so it has all of them.

    Args:
        model: the model.
        ran: paths of the modules that ran, or whose parameters were used.
        is_leaf: which modules are not looked into.

    """

    def is_whole(module: nn.Module, path: str) -> bool:
        is_closed = not module._modules or is_leaf(module, path) or takes_note(module)
        return path in ran and is_closed

    return _children(model, "", ran, is_whole)


# Says of a module and its path whether it is there with all that it holds.
_Rule: TypeAlias = Callable[[nn.Module, str], bool]


def _children(
    module: nn.Module, path: str, ran: Collection[str], is_whole: _Rule
) -> dict[str, nn.Module | None]:
    found: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        part = None if child is None else _part(child, join(path, name), ran, is_whole)
        if part is not None:
            found[name] = part
    return found


def _part(module: nn.Module, path: str, ran: Collection[str], is_whole: _Rule) -> nn.Module | None:
    if is_whole(module, path):
        return module
    children = _children(module, path, ran, is_whole)
    if not children and path not in ran:
        return None
    if len(children) == len(module._modules) and all(
        part is module._modules[name] for name, part in children.items()
    ):
        return module
    stand_in = nn.Module()
    stand_in.training = module.training
    stand_in._modules = children
    if path in ran:
        stand_in._parameters, stand_in._buffers = module._parameters, module._buffers
        stand_in._non_persistent_buffers_set = module._non_persistent_buffers_set
    return stand_in
