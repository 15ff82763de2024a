"""timm's own extractors, which find the stages of timm's models by their ``feature_info``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models._features import FeatureHookNet, FeatureListNet
from timm.models._features_fx import FeatureGraphNet
from torch import nn

from .peers import Extract, Features

__all__ = ["TIMM_EXTRACTORS", "indices_of", "timm_model"]


@lru_cache(maxsize=2)
def timm_model(name: str, device: str = "cpu") -> nn.Module:
    """Build a model of timm with random weights, in eval mode."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name)
    return model.eval().to(device)


def indices_of(model: Any, nodes: Sequence[str]) -> tuple[int, ...]:
    """Return what timm calls the stages ``nodes``."""
    modules = [stage["module"] for stage in model.feature_info]
    return tuple(modules.index(node) for node in nodes)


def _named(net: nn.Module, nodes: Sequence[str]) -> Extract:
    net.eval()

    def extract(x: torch.Tensor) -> Features:
        return dict(zip(nodes, net(x), strict=True))

    return extract


def by_list(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Run the children of the model one after the other: ``create_model(features_only=True)``."""
    return _named(FeatureListNet(model, indices_of(model, nodes)), nodes)


def by_hooks(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Leave hooks on a copy of the model that has lost its classifier."""
    return _named(FeatureHookNet(copy.deepcopy(model), indices_of(model, nodes)), nodes)


def by_graph(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Rewrite the graph with torchvision's tool."""
    return _named(FeatureGraphNet(model, indices_of(model, nodes)), nodes)


TIMM_EXTRACTORS = {
    "timm features_only": by_list,
    "timm FeatureHookNet": by_hooks,
    "timm FeatureGraphNet": by_graph,
}
