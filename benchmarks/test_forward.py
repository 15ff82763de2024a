"""Running an extractor, beside a truncated model written by hand, and other ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from featuretap import create_feature_extractor, get_graph_node_names

from .models import classifier, linear_stack
from .peers import (
    Extract,
    Features,
    Steps,
    Truncated,
    features_steps,
    hooked,
    maxvit_steps,
    resnet_steps,
    timm_resnet_steps,
    torchvision_extractor,
    vit_steps,
)
from .timing import Benchmark, Peer, compare
from .timm_extractors import TIMM_EXTRACTORS, timm_model

TOPIC = "Forward"


@dataclass(frozen=True)
class Case:
    """One feature of a model, and the fastest way to it that one could write by hand."""

    label: str
    model: Callable[[str], nn.Module]
    node: str
    steps: Steps | None
    rounds: int
    target: float | None = 1.02
    shape: tuple[int, ...] = (1, 3, 224, 224)
    calls: int = 1

    @property
    def floor_name(self) -> str:
        return "truncated" if self.steps else "model alone"

    def floor(self, model: nn.Module) -> Extract:
        """Cut ``model`` by hand after the node, or call all of it."""
        if self.steps:
            return Truncated(self.steps(model), [self.node]).eval()
        return lambda x: {self.node: model(x)}


LAYER = "encoder.layers.encoder_layer_"


def _case(label: str, name: str, node: str, steps: Steps, rounds: int, **more: Any) -> Case:
    return Case(label, partial(classifier, name), node, steps, rounds, **more)


CASES = [
    _case("alexnet, middle: features.7", "alexnet", "features.7", features_steps, 80),
    _case(
        "resnet18 at 32 x 32, middle: layer3",
        *("resnet18", "layer3", resnet_steps, 150),
        shape=(1, 3, 32, 32),
        calls=3,
    ),
    _case("resnet18, early: layer1", "resnet18", "layer1", resnet_steps, 80),
    _case("resnet18, middle: layer3", "resnet18", "layer3", resnet_steps, 80),
    _case("vit_b_16, early: 1 of 12 blocks", "vit_b_16", f"{LAYER}0", vit_steps, 40),
    _case("vit_b_16, middle: 5 of 12 blocks", "vit_b_16", f"{LAYER}4", vit_steps, 25),
    _case(
        "densenet121, middle: 2 of 4 blocks",
        *("densenet121", "features.denseblock2", features_steps, 40),
        target=None,
    ),
    _case("maxvit_t, early: 1 of 4 blocks", "maxvit_t", "blocks.0", maxvit_steps, 25),
    Case(
        "100 x (Linear(8, 8), ReLU), whole",
        linear_stack,
        "199",
        steps=None,
        rounds=150,
        target=1.03,
        shape=(1, 8),
        calls=10,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
@torch.no_grad()
def test_forward(benchmark: Benchmark, device: str, case: Case) -> None:
    """An extractor costs what the truncated model costs, and all ways give the same feature."""
    model = case.model(device)
    x = torch.randn(case.shape, device=device)
    ours = create_feature_extractor(model, [case.node], backend="fx")
    floor = case.floor(model)
    others: dict[str, Extract] = {
        "torchvision": torchvision_extractor(model, [case.node]),
        "forward hook": hooked(model, [case.node]),
    }
    # Those that may run the whole model need not be known so exactly.
    some = case.rounds if case.calls > 1 else 10
    peers = {name: Peer(partial(way, x), rounds=some) for name, way in others.items()}
    compare(
        benchmark,
        TOPIC,
        case.label,
        partial(ours, x),
        {case.floor_name: Peer(partial(floor, x), case.target), **peers},
        rounds=case.rounds,
        calls=case.calls,
        warmup=5,
        device=device,
    )
    feature = ours(x)[case.node]
    for name, way in {case.floor_name: floor, **others}.items():
        assert torch.equal(feature, way(x)[case.node]), name


@torch.no_grad()
def test_forward_beside_timm(benchmark: Benchmark, device: str) -> None:
    """timm's extractors know where the stages of timm's models are."""
    model, nodes = timm_model("resnet18", device), ["layer1", "layer2", "layer3"]
    x = torch.randn(1, 3, 224, 224, device=device)
    ours = create_feature_extractor(model, nodes, backend="fx")
    others = {"truncated": Truncated(timm_resnet_steps(model), nodes).eval()}
    others |= {name: way(model, nodes) for name, way in TIMM_EXTRACTORS.items()}
    targets = {"truncated": 1.02}
    peers = {name: Peer(partial(way, x), targets.get(name)) for name, way in others.items()}
    case = "timm's resnet18, three stages"
    compare(
        *(benchmark, TOPIC, case, partial(ours, x), peers),
        rounds=60,
        warmup=5,
        device=device,
    )
    features = ours(x)
    for name, way in others.items():
        theirs = way(x)
        assert all(torch.equal(features[node], theirs[node]) for node in nodes), name


@pytest.mark.parametrize("name", ["resnet18", "linear stack"])
@torch.no_grad()
def test_every_node(benchmark: Benchmark, device: str, name: str) -> None:
    """Every node, each copied only where the model overwrites it, which torchvision does not do."""
    small = name == "linear stack"
    model = linear_stack(device) if small else classifier(name, device)
    x = torch.randn((1, 8) if small else (1, 3, 32, 32), device=device)
    nodes = list(get_graph_node_names(model, backend="fx"))
    ours = create_feature_extractor(model, nodes, backend="fx")
    theirs = torchvision_extractor(model, nodes)
    compare(
        benchmark,
        TOPIC,
        "100 x (Linear(8, 8), ReLU), every node" if small else "resnet18 at 32 x 32, every node",
        partial(ours, x),
        {"model alone": Peer(partial(model, x)), "torchvision": Peer(partial(theirs, x))},
        rounds=100,
        calls=3,
        warmup=5,
        device=device,
    )
    features: Features = ours(x)
    for node, value in theirs(x).items():
        right, overwritten = features[node], features[node].relu()
        assert torch.equal(value, right) or torch.equal(value, overwritten), node
