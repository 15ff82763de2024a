"""Give an extractor the parts of the model that its graphs refer to, and nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..extractor import FeatureExtractor, Followed
from ..modules import ModuleTree, converts_itself, stored_tensor
from ..naming import paths_above

__all__ = ["populate"]


def populate(
    extractor: FeatureExtractor, tree: ModuleTree, constants: Mapping[str, torch.Tensor]
) -> None:
    """Put the modules, parameters and buffers that the graphs name where the model has them.

    They are the model's own objects. Modules on the way that are not needed as a whole are stood
    in for by empty ones, unless they convert what they hold in a way of their own (a table of angles that
    stays in float32). Constants that belong to no module become plain attributes. A module that the model
    has in two places is in both, if the second is in a module that is needed.
    """
    called: set[str] = set()
    read: dict[str, dict[str, None]] = {}
    for graph in extractor.graphs():
        for node in graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                called.add(path)
            elif node.op == "get_attr" and path in constants:
                vars(extractor)[path] = constants[path]
            elif node.op == "get_attr":
                owner, _, name = path.rpartition(".")
                read.setdefault(owner, {})[name] = None
    holders: dict[str, nn.Module] = {"": extractor}
    around = {outer for path in (*called, *read) for outer in (*paths_above(path), path)} - {""}
    called.update(path for path in around if converts_itself(tree.paths[path]))
    # In the model's order, which optimizers go by, and outer modules first: a whole one must not
    # replace a stand-in that has children already.
    for path, module in tree.paths.items():
        if path in called:
            owner, _, name = path.rpartition(".")
            _holder(owner, holders, tree)._modules[name] = holders[path] = module
        if path in read:
            _install_tensors(extractor, _holder(path, holders, tree), module, read[path])
    for second, first in tree.aliases.items():
        owner, _, name = second.rpartition(".")
        if first in holders and owner in holders:
            holders[owner]._modules.setdefault(name, holders[first])


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


def _install_tensors(
    extractor: FeatureExtractor, holder: nn.Module, original: nn.Module, names: Iterable[str]
) -> None:
    if holder is original:
        return
    order = list(original._parameters)
    for name in sorted(names, key=lambda name: order.index(name) if name in order else -1):
        tensor: Any = stored_tensor(original, name)
        if name in original._parameters:
            holder._parameters[name] = tensor
            extractor.followed.append(Followed(holder._parameters, weakref.ref(original), name))
        elif name in original._buffers:
            # ``to`` and ``half`` put new tensors into the registry, so the registry itself is shared.
            holder._buffers = original._buffers
            holder._non_persistent_buffers_set = original._non_persistent_buffers_set
        else:
            vars(holder)[name] = tensor
