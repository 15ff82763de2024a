"""Watching the real forward, beside plain hooks, a truncated model and the model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor, get_graph_node_names

from .hook_libraries import HOOK_LIBRARIES, baukit_style, seconds_of_torchlens
from .models import bert, classifier
from .peers import (
    Truncated,
    hooked,
    resnet_steps,
    timm_resnet_steps,
    torchvision_extractor,
    vit_steps,
)
from .timing import Benchmark, Peer, compare
from .timm_extractors import TIMM_EXTRACTORS, timm_model

TOPIC = "Hooks"
STAGES = ["layer1", "layer2", "layer3", "layer4"]


def whole(model: nn.Module, x: torch.Tensor) -> Any:
    """Run the model and keep nothing."""
    return model(x)


def measure(
    benchmark: Benchmark,
    case: str,
    ours: Callable[[torch.Tensor], Any],
    peers: dict[str, tuple[Callable[[torch.Tensor], Any], float | None]],
    x: torch.Tensor,
    rounds: int,
    more: dict[str, Peer] | None = None,
) -> None:
    """Time ``ours`` beside ``peers`` and ``more``, and check that all give the same features."""
    ways = {name: Peer(partial(way, x), target) for name, (way, target) in peers.items()}
    ways |= more or {}
    calls = 3 if x.shape[-1] < 100 else 1
    compare(benchmark, TOPIC, case, partial(ours, x), ways, rounds=rounds, calls=calls, warmup=5)
    features = ours(x)
    for name, (way, _) in peers.items():
        theirs = way(x)
        for key in set(features).intersection(theirs if isinstance(theirs, dict) else ()):
            assert torch.equal(features[key], theirs[key]), (name, key)


@pytest.mark.parametrize("size", [32, 224])
@torch.no_grad()
def test_outputs_of_modules(benchmark: Benchmark, size: int) -> None:
    """Four outputs of a whole forward cost what plain hooks cost."""
    model, x = classifier("resnet18"), torch.randn(1, 3, size, size)
    measure(
        benchmark,
        f"resnet18 at {size} x {size}, four stages, whole forward",
        create_feature_extractor(model, [*STAGES, "fc"]),
        {
            "plain hooks": (hooked(model, [*STAGES, "fc"]), 1.02),
            **{
                name: (way(copy.deepcopy(model), [*STAGES, "fc"]), None)
                for name, way in HOOK_LIBRARIES.items()
            },
        },
        x,
        rounds=100 if size == 32 else 50,
    )


@torch.no_grad()
def test_a_model_whose_code_may_change_it(benchmark: Benchmark) -> None:
    """What hundreds of modules hold is compared in each call, for the code of transformers may set it."""
    model, x = bert(), torch.randint(0, 100, (1, 64))
    node = "encoder.layer.11.output"
    measure(
        benchmark,
        "BERT of transformers, 12 layers of 256, the last, whole forward",
        create_feature_extractor(model, [node], early_stop=False),
        {"plain hooks": (hooked(model, [node]), None)},
        x,
        rounds=50,
    )


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
@torch.no_grad()
def test_early_stop(benchmark: Benchmark, name: str) -> None:
    """Stopping costs next to nothing beside a model that ends there."""
    model, x = classifier(name), torch.randn(1, 3, 224, 224)
    node = "layer3" if name == "resnet18" else "encoder.layers.encoder_layer_2"
    steps = resnet_steps(model) if name == "resnet18" else vit_steps(model)
    measure(
        benchmark,
        f"{name}, to {node}",
        create_feature_extractor(model, [node]),
        {
            "truncated": (Truncated(steps, [node]).eval(), 1.03),
            "torchvision": (torchvision_extractor(model, [node]), None),
            "baukit-style": (baukit_style(model, [node]), None),
        },
        x,
        rounds=80 if name == "resnet18" else 30,
    )


@torch.no_grad()
def test_early_stop_beside_timm(benchmark: Benchmark) -> None:
    """timm's extractors know where the stages of timm's models are."""
    model, x, nodes = timm_model("resnet18"), torch.randn(1, 3, 224, 224), STAGES[:3]
    timm = {name: (way(model, nodes), None) for name, way in TIMM_EXTRACTORS.items()}
    floor = Truncated(timm_resnet_steps(model), nodes).eval()
    measure(
        benchmark,
        "timm's resnet18, three stages",
        create_feature_extractor(model, nodes),
        {"truncated": (floor, 1.03), **timm},
        x,
        rounds=60,
    )


@pytest.mark.parametrize("early_stop", [True, False])
@torch.no_grad()
def test_operations_in_one_scope(benchmark: Benchmark, early_stop: bool) -> None:
    """A torch-function mode is on in one block only: the last one, or the first of a whole forward."""
    model, x = classifier("resnet18"), torch.randn(1, 3, 32, 32)
    which, node = (
        ("the last addition", "layer4.1.add")
        if early_stop
        else ("the first addition, early_stop=False", "layer1.0.add")
    )
    measure(
        benchmark,
        f"resnet18 at 32 x 32, {which}",
        create_feature_extractor(model, [node], early_stop=early_stop),
        {"model alone": (partial(whole, model), 1.05)},
        x,
        rounds=100,
    )


@torch.no_grad()
def test_every_node(benchmark: Benchmark) -> None:
    """Every node of the model, each copied only where it is overwritten."""
    model, x = classifier("resnet18"), torch.randn(1, 3, 32, 32)
    # One value per channel is none that batch norm can train on: this model has its eval mode only.
    names = list(get_graph_node_names(model, example_args=(x,), suppress_diff_warning=True))
    logged = copy.deepcopy(model)
    measure(
        benchmark,
        "resnet18 at 32 x 32, every node",
        create_feature_extractor(model, names),
        {"model alone": (partial(whole, model), 1.35)},
        x,
        rounds=100,
        more={
            "torchlens": Peer(partial(seconds_of_torchlens, logged, x), rounds=5, own_clock=True)
        },
    )
