"""What an extractor keeps alive, beside a truncated model that keeps the same features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from featuretap import create_feature_extractor

from .hook_libraries import baukit_style
from .memory import peak_bytes
from .models import classifier
from .peers import Extract, Steps, Truncated, features_steps, resnet_steps, vit_steps
from .timing import Benchmark, note


@dataclass(frozen=True)
class Case:
    """Features of a model, some of which its next step would overwrite in place."""

    label: str
    model: str
    steps: Steps
    nodes: tuple[str, ...]
    overwritten: tuple[str, ...] = ()


TOPIC = "Memory"
LAYERS = "encoder.layers.encoder_layer_"
CASES = [
    Case("resnet18, 1 feature", "resnet18", resnet_steps, ("layer3",)),
    Case("resnet18, 3 features", "resnet18", resnet_steps, ("layer1", "layer2", "layer3")),
    Case("resnet18, 1 of 2 overwritten", "resnet18", resnet_steps, ("bn1", "layer2"), ("bn1",)),
    Case("vit_b_16, 2 features", "vit_b_16", vit_steps, (f"{LAYERS}0", f"{LAYERS}2")),
    Case(
        "densenet121, 2 features",
        "densenet121",
        features_steps,
        ("features.denseblock1", "features.denseblock2"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@torch.no_grad()
def test_peak_memory(benchmark: Benchmark, device: str, case: Case) -> None:
    """An extractor never has more alive than the truncated model and the features kept."""
    model, x = classifier(case.model, device), torch.randn(1, 3, 224, 224, device=device)
    ours = create_feature_extractor(model, list(case.nodes), backend="fx")
    truncated = Truncated(case.steps(model), case.nodes, case.overwritten).eval()
    check(ours, truncated, x)
    theirs = peak_bytes(partial(truncated, x), device)
    mine = benchmark.pedantic(peak_bytes, args=(partial(ours, x), device))
    if not benchmark.disabled:
        peaks = {"truncated": [theirs]}
        note(benchmark, TOPIC, case.label, [mine], peaks, {"truncated": 1.0}, unit="B")
    assert 0 < mine <= theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@torch.no_grad()
def test_peak_memory_of_hooks(benchmark: Benchmark, device: str, case: Case) -> None:
    """Hooks never have more alive than the real forward does that stops and keeps the same."""
    model, x = classifier(case.model, device), torch.randn(1, 3, 224, 224, device=device)
    ours = create_feature_extractor(model, list(case.nodes), backend="hooks")
    stopped = baukit_style(model, case.nodes, case.overwritten)
    kept = check(ours, stopped, x)
    truncated = Truncated(case.steps(model), case.nodes[-1:]).eval()
    truncated(x)
    peaks = {
        # The truncated model ends with its last feature, which is in its peak already.
        "truncated + features": peak_bytes(partial(truncated, x), device) + kept,
        "plain hooks, stopped": peak_bytes(partial(stopped, x), device),
    }
    mine = benchmark.pedantic(peak_bytes, args=(partial(ours, x), device))
    if not benchmark.disabled:
        theirs = {name: [peak] for name, peak in peaks.items()}
        targets = {"truncated + features": 1.0}
        note(benchmark, TOPIC, f"hooks, {case.label}", [mine], theirs, targets, unit="B")
    assert 0 < mine <= peaks["plain hooks, stopped"]


def check(ours: Extract, theirs: Extract, x: torch.Tensor) -> int:
    """Check that both give the same; return the bytes of all features but the last.

    It comes before measuring, for on CUDA the libraries allocate their workspaces in the first call.
    """
    features, expected = ours(x), theirs(x)
    for node, feature in expected.items():
        assert torch.equal(features[node], feature), node
    return sum(feature.nbytes for feature in list(expected.values())[:-1])
