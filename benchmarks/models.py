"""The models that are measured: torchvision's classifiers, and synthetic ones of any size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torchvision import models as zoo  # type: ignore[import-untyped]

# Model -> three of its modules: early, middle, late. Both tools accept these as node names.
CLASSIFIERS = {
    "alexnet": ("features.2", "features.7", "classifier.4"),
    "resnet18": ("layer1", "layer2", "layer4"),
    "resnet50": ("layer1", "layer2", "layer4"),
    "densenet121": ("features.denseblock1", "features.denseblock2", "features.denseblock4"),
    "vit_b_16": tuple(f"encoder.layers.encoder_layer_{index}" for index in (1, 5, 11)),
    "swin_t": ("features.1", "features.3", "features.7"),
    "googlenet": ("inception3a", "inception4c", "inception5b"),
    "efficientnet_b0": ("features.1", "features.4", "features.8"),
    "maxvit_t": ("blocks.0", "blocks.1", "blocks.3"),
}

# Their forwards read ``self.training``, so each mode has to be traced on its own.
MODES_DIFFER = frozenset({"swin_t", "googlenet", "efficientnet_b0", "maxvit_t"})

# How often the slow ones are listed and created from.
# A trace of a few milliseconds varies by a tenth from one to the next.
ROUNDS = {"alexnet": 101, "resnet18": 101, "resnet50": 51, "maxvit_t": 9}

_ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": {"init_weights": False}}


@lru_cache(maxsize=4)
def classifier(name: str, device: str = "cpu") -> nn.Module:
    """Build a classifier of torchvision with random weights, in eval mode."""
    torch.manual_seed(0)
    model: nn.Module = getattr(zoo, name)(weights=None, **_ARGUMENTS.get(name, {}))
    return model.eval().to(device)


def bert() -> nn.Module:
    """Build a small BERT of transformers with random weights, in eval mode."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    model: nn.Module = BertModel(BertConfig(vocab_size=100, num_hidden_layers=12, **sizes))
    return model.eval()


class Block(nn.Module):
    """Three nodes: a linear layer, an activation and the residual addition."""

    NODES = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.act(self.linear(x))
        return out


@lru_cache(maxsize=4)
def chain(nodes: int) -> nn.Module:
    """Build a chain of ``nodes`` operations, in stages of ten blocks, in eval mode."""
    blocks = [Block() for _ in range(nodes // Block.NODES)]
    stages = [nn.Sequential(*blocks[start : start + 10]) for start in range(0, len(blocks), 10)]
    return nn.Sequential(*stages).eval()


def chain_nodes(nodes: int) -> tuple[str, str, str]:
    """Return the names of an early, a middle and a late node of :func:`chain`."""
    stages = nodes // Block.NODES // 10
    early, middle, late = (f"{int(stages * part)}.5.add" for part in (0.1, 0.5, 0.9))
    return early, middle, late


def linear_stack(device: str = "cpu", pairs: int = 100, width: int = 8) -> nn.Sequential:
    """Build ``pairs`` x (Linear, ReLU), so small that every overhead shows."""
    torch.manual_seed(0)
    layers = [layer for _ in range(pairs) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers).eval().to(device)
