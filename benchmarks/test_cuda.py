"""Forward on a GPU, eager, compiled and as a CUDA graph; the CPU only tries that it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from featuretap import create_feature_extractor

from .hook_libraries import baukit_style
from .models import classifier
from .peers import Extract, Features, Steps, Truncated, features_steps, resnet_steps, vit_steps
from .timing import Benchmark, Peer, compare

TOPIC = "CUDA"
TARGET = 1.02
MODELS: dict[str, tuple[str, Steps]] = {
    "resnet50": ("layer3", resnet_steps),
    "vit_b_16": ("encoder.layers.encoder_layer_5", vit_steps),
    "swin_v2_t": ("features.5", features_steps),
}


def as_graph(way: Extract, x: torch.Tensor) -> Callable[[], Features]:
    """Record a call as a CUDA graph; what comes back replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            way(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = way(x)

    def replay() -> Features:
        graph.replay()
        return features

    return replay


def prepared(way: Any, x: torch.Tensor, mode: str) -> Callable[[], Features]:
    """Make the call that is timed."""
    on_gpu = x.device.type == "cuda"
    if mode == "CUDA graph" and on_gpu:
        return as_graph(way, x)
    if mode == "compiled":
        options = {"backend": "inductor" if on_gpu else "eager"}
        return partial(torch.compile(way, fullgraph=True, dynamic=False, **options), x)
    return partial(way, x)


def synchronisations(call: Callable[[], object]) -> int:
    """Count how often ``call`` makes the CPU wait for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


@pytest.mark.filterwarnings("default")  # those of the compiler are about the model
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("mode", ["eager", "compiled", "CUDA graph"])
@pytest.mark.parametrize("backend", ["fx", "hooks"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forward_on_a_gpu(
    benchmark: Benchmark, device: str, quick: bool, name: str, backend: str, mode: str, batch: int
) -> None:
    """Each way costs what the truncated model costs, and the CPU waits no oftener."""
    on_gpu = device.startswith("cuda")
    tried = mode == "eager" or (mode, name) == ("compiled", "resnet50")
    if not on_gpu and not (quick and tried):
        pytest.skip("needs --device cuda")
    if quick and batch > 1 and not on_gpu:
        pytest.skip("needs --device cuda")
    node, steps = MODELS[name]
    model: nn.Module = classifier(name, device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    torch._dynamo.reset()
    extractor = create_feature_extractor(model, [node], backend=backend)
    ours = prepared(extractor, x, mode)
    truncated = prepared(Truncated(steps(model), [node]).eval(), x, mode)
    peers = {"truncated": Peer(truncated, TARGET)}
    if (backend, mode) == ("hooks", "eager"):
        # A batch of one waits for Python: what the least that a hook can do costs then.
        peers["plain hooks, stopped"] = Peer(partial(baukit_style(model, [node]), x))
    compare(
        benchmark,
        TOPIC,
        f"{name}, {mode}, batch {batch}, {backend}",
        ours,
        peers,
        rounds=40,
        calls=10 if batch == 1 else 2,
        device=device,
    )
    # A compiler may order the same sums in another way.
    tolerance = 1e-3 if mode == "compiled" else 0.0
    feature, expected = ours()[node], truncated()[node]
    torch.testing.assert_close(feature, expected, rtol=tolerance, atol=tolerance)
    if on_gpu:
        waits = synchronisations(ours), synchronisations(truncated)
        assert waits[0] <= waits[1]
        benchmark.extra_info["waits"] = waits
