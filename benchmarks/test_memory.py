"""What an extractor keeps alive, beside a truncated model that keeps the same features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from featuretap import create_feature_extractor

from .memory import peak_bytes
from .models import classifier
from .peers import Truncated, densenet_steps, resnet_steps, vit_steps
from .timing import Benchmark, note


@dataclass(frozen=True)
class Case:
    """Features of a model, some of which its next step would overwrite in place."""

    label: str
    model: str
    steps: Callable[[nn.Module], list[tuple[str, nn.Module]]]
    nodes: tuple[str, ...]
    overwritten: tuple[str, ...] = ()


LAYERS = "encoder.layers.encoder_layer_"
CASES = [
    Case("resnet18, 1 feature", "resnet18", resnet_steps, ("layer3",)),
    Case("resnet18, 3 features", "resnet18", resnet_steps, ("layer1", "layer2", "layer3")),
    Case("resnet18, 1 of 2 overwritten", "resnet18", resnet_steps, ("bn1", "layer2"), ("bn1",)),
    Case("vit_b_16, 2 features", "vit_b_16", vit_steps, (f"{LAYERS}0", f"{LAYERS}2")),
    Case(
        "densenet121, 2 features",
        "densenet121",
        densenet_steps,
        ("features.denseblock1", "features.denseblock2"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@torch.no_grad()
def test_peak_memory(benchmark: Benchmark, device: str, case: Case) -> None:
    """An extractor never has more alive than the truncated model and the features kept."""
    model = classifier(case.model, device)
    x = torch.randn(1, 3, 224, 224, device=device)
    extractor = create_feature_extractor(model, list(case.nodes), backend="fx")
    truncated = Truncated(case.steps(model), case.nodes, case.overwritten).eval()
    features, expected = extractor(x), truncated(x)
    for node, feature in expected.items():
        assert torch.equal(features[node], feature), node
    # Only now, for on CUDA the libraries allocate their workspaces in the first call.
    del features, expected, feature
    theirs = peak_bytes(partial(truncated, x), device)
    ours = benchmark.pedantic(peak_bytes, args=(partial(extractor, x), device))
    if not benchmark.disabled:
        peaks = {"truncated": [theirs]}
        note(benchmark, "Memory", case.label, [ours], peaks, {"truncated": 1.0}, unit="B")
    assert 0 < ours <= theirs
