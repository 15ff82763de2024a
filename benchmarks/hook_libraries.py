"""Other libraries that watch the real forward, each asked for outputs of modules in its own way."""

from __future__ import annotations

import time
from collections.abc import Sequence
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

__all__ = ["HOOK_LIBRARIES", "baukit_style", "seconds_of_torchlens"]

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


def seconds_of_torchlens(model: nn.Module, x: torch.Tensor) -> float:
    """Time one forward that keeps everything.

    torchlens replaces the functions of torch, which slows all else down and is undone here; that it
    takes a third of a second is not counted.
    """
    wrap_torch()
    try:
        start = time.perf_counter()
        torchlens.trace(model, x)
        return time.perf_counter() - start
    finally:
        unwrap_torch()


class _StopForward(Exception):
    pass


def baukit_style(model: nn.Module, node: str) -> Extract:
    """End the forward by an exception in a hook, as baukit's ``Trace(stop=True)`` does."""
    module = model.get_submodule(node)

    def extract(x: torch.Tensor) -> Features:
        features: Features = {}

        def keep(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            features[node] = output
            raise _StopForward

        handle = module.register_forward_hook(keep)
        try:
            model(x)
        except _StopForward:
            pass
        finally:
            handle.remove()
        return features

    return extract
