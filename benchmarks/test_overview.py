"""The same five tasks with every tool: the table of the README."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import nnsight  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

from featuretap import create_feature_extractor, get_graph_node_names

from .hook_libraries import by_nnsight, seconds_of_torchlens, torchlens_log
from .memory import peak_bytes
from .peers import (
    Extract,
    Truncated,
    bare_trace,
    hooked,
    timm_resnet_steps,
    torchvision_extractor,
    torchvision_names,
)
from .timing import Benchmark, Peer, compare, note
from .timm_extractors import TIMM_EXTRACTORS, timm_model

TOPIC = "Overview"
STAGES = ["layer1", "layer2", "layer3", "layer4"]
HOOKS = "featuretap-hooks"


@pytest.fixture
def model(quick: bool) -> nn.Module:
    """Return the model of all tasks."""
    return timm_model("resnet18" if quick else "resnet50")


@pytest.fixture
def x(quick: bool) -> torch.Tensor:
    """Return the input of all tasks."""
    size = 64 if quick else 224
    return torch.randn(1, 3, size, size)


def ways_to(model: nn.Module, nodes: list[str]) -> dict[str, Extract]:
    """Return every way to the outputs of the modules ``nodes``, the floor first."""
    return {
        "truncated": Truncated(timm_resnet_steps(model), nodes).eval(),
        HOOKS: create_feature_extractor(model, nodes, backend="hooks"),
        "torchvision": torchvision_extractor(model, nodes),
        **{name: way(model, nodes) for name, way in TIMM_EXTRACTORS.items()},
        "plain hooks": hooked(model, nodes),
        "nnsight": by_nnsight(copy.deepcopy(model), nodes),
    }


def torchlens_peer(model: nn.Module, x: torch.Tensor) -> Peer:
    """Let torchlens log a forward, which has the values of all that is asked for elsewhere."""
    logged = copy.deepcopy(model)
    return Peer(partial(seconds_of_torchlens, logged, x), rounds=3, own_clock=True)


def test_listing(benchmark: Benchmark, model: nn.Module, x: torch.Tensor) -> None:
    """All names of the model."""
    listed = partial(get_graph_node_names, model, suppress_diff_warning=True)
    watched = partial(listed, example_args=(x,), backend="hooks")
    peers = {
        "bare trace": Peer(partial(bare_trace, model)),
        HOOKS: Peer(watched, rounds=5),
        "torchvision": Peer(partial(torchvision_names, model), rounds=5),
    }
    compare(benchmark, TOPIC, "list nodes", partial(listed, backend="fx"), peers, rounds=25)
    assert set(listed(backend="fx")) <= set(watched())


def test_creating(benchmark: Benchmark, model: nn.Module) -> None:
    """An extractor of four stages."""
    created = partial(create_feature_extractor, model, STAGES)
    others: dict[str, Callable[[], Any]] = {
        "bare trace": partial(bare_trace, model),
        HOOKS: partial(created, backend="hooks"),
        "torchvision": partial(torchvision_extractor, model, STAGES),
        **{
            name: partial(way, model, STAGES)
            for name, way in TIMM_EXTRACTORS.items()
            if name != "timm FeatureHookNet"  # needs a copy of the model for each
        },
        "nnsight": partial(nnsight.NNsight, copy.deepcopy(model)),
    }
    slow = ("torchvision", "timm FeatureGraphNet")
    peers = {name: Peer(way, rounds=5 if name in slow else None) for name, way in others.items()}
    compare(
        *(benchmark, TOPIC, "create for 4 stages", partial(created, backend="fx"), peers),
        rounds=25,
    )


def forward(
    benchmark: Benchmark,
    case: str,
    model: nn.Module,
    x: torch.Tensor,
    nodes: list[str],
    more: dict[str, Peer] | None = None,
) -> None:
    """Time every way to ``nodes``, and check that all give the same."""
    ours, ways = create_feature_extractor(model, nodes, backend="fx"), ways_to(model, nodes)
    peers = {name: Peer(partial(way, x)) for name, way in ways.items()}
    peers |= more or {}
    compare(benchmark, TOPIC, case, partial(ours, x), peers, rounds=20)
    features = ours(x)
    for name, way in ways.items():
        theirs = way(x)
        assert all(torch.equal(features[node], theirs[node]) for node in nodes), name


@torch.no_grad()
def test_one_early_feature(benchmark: Benchmark, model: nn.Module, x: torch.Tensor) -> None:
    """One stage; what cannot stop runs the whole model."""
    forward(benchmark, "layer2", model, x, ["layer2"], {"torchlens": torchlens_peer(model, x)})


@torch.no_grad()
def test_four_stages(benchmark: Benchmark, model: nn.Module, x: torch.Tensor) -> None:
    """All stages."""
    forward(benchmark, "4 stages", model, x, STAGES)


@torch.no_grad()
def test_every_node(benchmark: Benchmark, model: nn.Module, x: torch.Tensor) -> None:
    """All operations; torchvision gives some of them overwritten."""
    nodes = list(get_graph_node_names(model, backend="fx", suppress_diff_warning=True))
    ours = create_feature_extractor(model, nodes, backend="fx")
    ways = {
        HOOKS: create_feature_extractor(model, nodes, backend="hooks"),
        "torchvision": torchvision_extractor(model, nodes),
    }
    peers = {"model alone": Peer(partial(model, x))}
    peers |= {name: Peer(partial(way, x)) for name, way in ways.items()}
    peers["torchlens"] = torchlens_peer(model, x)
    compare(benchmark, TOPIC, "every operation", partial(ours, x), peers, rounds=20)
    features, watched = ours(x), ways[HOOKS](x)
    assert all(torch.equal(value, watched[node]) for node, value in features.items())
    for node, value in ways["torchvision"](x).items():
        right, overwritten = features[node], features[node].relu()
        assert torch.equal(value, right) or torch.equal(value, overwritten), node
    logged = torchlens_log(copy.deepcopy(model), x)[1]
    assert torch.equal(logged, model(x))


@torch.no_grad()
def test_peak_memory(benchmark: Benchmark, model: nn.Module, x: torch.Tensor) -> None:
    """Bytes alive on the way to one stage."""
    nodes = ["layer2"]
    ways = ways_to(model, nodes)
    del ways["nnsight"]  # its values outlive the call
    ours = create_feature_extractor(model, nodes, backend="fx")
    mine = benchmark.pedantic(peak_bytes, args=(partial(ours, x),))
    theirs = {name: [peak_bytes(partial(way, x))] for name, way in ways.items()}
    if not benchmark.disabled:
        note(benchmark, TOPIC, "layer2: memory", [mine], theirs, {}, unit="B")
