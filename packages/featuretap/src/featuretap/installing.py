"""Give an extractor the parts of the model that its graphs refer to, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .extractor import FeatureExtractor
from .modules import ModuleTree, stored_tensor

__all__ = ["populate"]


def populate(
    extractor: FeatureExtractor, tree: ModuleTree, constants: Mapping[str, torch.Tensor]
) -> None:
    """Put the modules, parameters and buffers that the graphs name where the model has them.

    They are the model's own objects. Modules on the way that are not needed as a whole are stood
    in for by empty ones. Constants that belong to no module become plain attributes.
    """
    targets: dict[str, str] = {}
    for graph in extractor.graphs():
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                targets[str(node.target)] = node.op
    holders: dict[str, nn.Module] = {"": extractor}
    # Shorter paths first: a whole module must not replace a stand-in that already has children.
    for path in sorted(targets, key=lambda target: target.count(".")):
        owner, _, name = path.rpartition(".")
        if path in constants:
            vars(extractor)[path] = constants[path]
        elif targets[path] == "call_module":
            _holder(owner, holders, tree)._modules[name] = holders[path] = tree.paths[path]
        else:
            holder = _holder(owner, holders, tree)
            _install_tensor(holder, tree.paths[owner], name)
    for path, holder in holders.items():
        if holder is not tree.paths[path]:
            _sort(holder, tree.paths[path])


def _holder(path: str, holders: dict[str, nn.Module], tree: ModuleTree) -> nn.Module:
    """Return the extractor's module at ``path``: the model's own, or a stand-in."""
    if path in holders:
        return holders[path]
    owner, _, name = path.rpartition(".")
    parent = _holder(owner, holders, tree)
    child = parent._modules.get(name)
    if child is None:
        child = nn.Module()
        child.training = tree.paths[path].training
        parent._modules[name] = child
    holders[path] = child
    return child


def _sort(holder: nn.Module, original: nn.Module) -> None:
    """Bring children and parameters into the model's order, which optimizers go by."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (holder._modules, original._modules),
        (holder._parameters, original._parameters),
    ]
    for registry, order in pairs:
        ordered = {name: registry[name] for name in order if name in registry}
        registry.clear()
        registry.update(ordered)


def _install_tensor(holder: nn.Module, original: nn.Module, name: str) -> None:
    if holder is original:
        return
    tensor: Any = stored_tensor(original, name)
    if name in original._parameters:
        holder._parameters[name] = tensor
    elif name in original._buffers:
        # ``to`` and ``half`` put new tensors into the registry, so the registry itself is shared.
        holder._buffers = original._buffers
        holder._non_persistent_buffers_set = original._non_persistent_buffers_set
    else:
        vars(holder)[name] = tensor
