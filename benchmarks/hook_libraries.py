"""Other libraries that watch the real forward, each asked for outputs of modules in its own way."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import nnsight  # type: ignore[import-untyped]
import surgeon_pytorch  # type: ignore[import-untyped]
import torch
import torchextractor  # type: ignore[import-untyped]
import torchlens  # type: ignore[import-untyped]
from nnsight._c.py_mount import unmount  # type: ignore[import-untyped]
from torch import nn
from torchlens.backends.torch.wrappers import (  # type: ignore[import-untyped]
    unwrap_torch,
    wrap_torch,
)

from .peers import Extract, Features

__all__ = ["HOOK_LIBRARIES", "baukit_style", "seconds_of_torchlens", "torchlens_log"]

# nnsight gives a ``save`` to every object of the process, which then passes for an option of argparse.
if hasattr(object, "save"):
    unmount("save")


def by_torchextractor(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Leave hooks on the modules for good."""
    extractor = torchextractor.Extractor(model, list(nodes))

    def extract(x: torch.Tensor) -> Features:
        return dict(extractor(x)[1])

    return extract


def by_surgeon(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Leave hooks on the modules for good."""
    inspect = surgeon_pytorch.Inspect(model, layer=list(nodes))

    def extract(x: torch.Tensor) -> Features:
        return dict(zip(nodes, inspect(x)[1], strict=True))

    return extract


def by_nnsight(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Run a block of the caller's code beside the forward."""
    wrapped = nnsight.NNsight(model)

    def extract(x: torch.Tensor) -> Features:
        with wrapped.trace(x):
            features = nnsight.save({node: wrapped.get(node).output for node in nodes})
        return dict(features)

    return extract


HOOK_LIBRARIES = {
    "torchextractor": by_torchextractor,
    "surgeon-pytorch": by_surgeon,
    "nnsight": by_nnsight,
}


def torchlens_log(model: nn.Module, x: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Log one forward with the value of every operation; return the seconds, and the output logged.

    torchlens replaces the functions of torch, which slows all else down and is undone here; that it
    takes a third of a second is not counted.
    """
    wrap_torch()
    try:
        start = time.perf_counter()
        log = torchlens.trace(model, x)
        seconds = time.perf_counter() - start
    finally:
        unwrap_torch()
    model(x)  # so that who comes next finds the caches warm
    return seconds, log[log.output_layers[0]].out


def seconds_of_torchlens(model: nn.Module, x: torch.Tensor) -> float:
    """Time :func:`torchlens_log`."""
    return torchlens_log(model, x)[0]


class _StopForward(Exception):
    pass


def baukit_style(model: nn.Module, nodes: Sequence[str], copied: Collection[str] = ()) -> Extract:
    """End the forward by an exception in the last hook, as baukit's ``TraceDict(stop=True)`` does."""
    modules = {node: model.get_submodule(node) for node in nodes}

    def extract(x: torch.Tensor) -> Features:
        features: Features = {}

        def keep(node: str, _module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            features[node] = output.clone() if node in copied else output
            if node == nodes[-1]:
                raise _StopForward

        handles = [m.register_forward_hook(partial(keep, node)) for node, m in modules.items()]
        try:
            model(x)
        except _StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return features

    return extract
