"""Running an extractor, beside a truncated model written by hand, and two other ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from featuretap import create_feature_extractor

from .models import classifier, linear_stack
from .peers import (
    Extract,
    Features,
    Truncated,
    densenet_steps,
    hooked,
    resnet_steps,
    torchvision_extractor,
    vit_steps,
)
from .timing import Benchmark, Peer, compare


@dataclass(frozen=True)
class Case:
    """One feature of a model, and the fastest way to it that one could write by hand."""

    label: str
    model: Callable[[str], nn.Module]
    node: str
    shape: tuple[int, ...]
    floor: Callable[[nn.Module, str], Extract]
    rounds: int
    target: float | None
    calls: int = 1
    floor_name: str = "truncated"


def truncated(
    steps: Callable[[nn.Module], list[tuple[str, nn.Module]]], model: nn.Module, node: str
) -> Extract:
    """Cut ``model`` by hand after the module ``node``."""
    return Truncated(steps(model), [node]).eval()


def eager(model: nn.Module, node: str) -> Extract:
    """Call the whole model."""

    def extract(x: torch.Tensor) -> Features:
        return {node: model(x)}

    return extract


CASES = [
    Case(
        "resnet18 at 32 x 32, to layer3",
        partial(classifier, "resnet18"),
        "layer3",
        (1, 3, 32, 32),
        partial(truncated, resnet_steps),
        rounds=150,
        target=1.02,
        calls=3,
    ),
    Case(
        "resnet18 at 224 x 224, to layer3",
        partial(classifier, "resnet18"),
        "layer3",
        (1, 3, 224, 224),
        partial(truncated, resnet_steps),
        rounds=80,
        target=1.02,
    ),
    Case(
        "vit_b_16, 3 of 12 blocks",
        partial(classifier, "vit_b_16"),
        "encoder.layers.encoder_layer_2",
        (1, 3, 224, 224),
        partial(truncated, vit_steps),
        rounds=40,
        target=1.02,
    ),
    Case(
        "densenet121, 2 of 4 blocks",
        partial(classifier, "densenet121"),
        "features.denseblock2",
        (1, 3, 224, 224),
        partial(truncated, densenet_steps),
        rounds=40,
        target=None,
    ),
    Case(
        "100 x (Linear(8, 8), ReLU), whole",
        linear_stack,
        "199",
        (1, 8),
        eager,
        rounds=150,
        target=1.03,
        calls=10,
        floor_name="eager",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@torch.no_grad()
def test_forward(benchmark: Benchmark, device: str, case: Case) -> None:
    """An extractor costs what the truncated model costs, and all ways give the same feature."""
    model = case.model(device)
    x = torch.randn(case.shape, device=device)
    ours = create_feature_extractor(model, [case.node], backend="fx")
    others: dict[str, Callable[[torch.Tensor], Any]] = {
        case.floor_name: case.floor(model, case.node),
        "torchvision": torchvision_extractor(model, [case.node]),
        "forward hook": hooked(model, case.node),
    }
    peers = {
        name: Peer(partial(way, x), case.target if name == case.floor_name else None)
        for name, way in others.items()
    }
    compare(
        benchmark,
        "Forward",
        case.label,
        partial(ours, x),
        peers,
        rounds=case.rounds,
        calls=case.calls,
        warmup=5,
        device=device,
    )
    feature = ours(x)[case.node]
    for name, way in others.items():
        assert torch.equal(feature, way(x)[case.node]), name
