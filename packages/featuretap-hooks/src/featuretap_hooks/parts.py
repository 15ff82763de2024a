"""The part of a model that a forward needs, for parameters that all take part in training."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from featuretap.naming import join

__all__ = ["needed_part"]


def needed_part(model: nn.Module, ran: Collection[str]) -> dict[str, nn.Module | None]:
    """Return the children of ``model``, without the modules that did not run.

    A module of which only a part ran is stood in for by an empty one with that part.

    Args:
        model: the model.
        ran: paths of the modules that ran, or whose parameters were used.

    """
    return _children(model, "", ran)


def _children(module: nn.Module, path: str, ran: Collection[str]) -> dict[str, nn.Module | None]:
    found: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        part = None if child is None else _part(child, join(path, name), ran)
        if part is not None:
            found[name] = part
    return found


def _part(module: nn.Module, path: str, ran: Collection[str]) -> nn.Module | None:
    is_whole = path in ran and (not module._modules or _runs_as_one(module))
    if is_whole:
        return module
    children = _children(module, path, ran)
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


def _runs_as_one(module: nn.Module) -> bool:
    """Whether ``module`` uses the parameters of its children without calling them."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, torch.jit.ScriptModule)
    return isinstance(module, kinds)
