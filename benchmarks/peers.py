"""What else a user could do: write the truncated model by hand, hook it, or use torchvision's tool."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torchvision.models import feature_extraction  # type: ignore[import-untyped]

Features = dict[str, torch.Tensor]
Extract = Callable[[torch.Tensor], Features]
Steps = Callable[[nn.Module], list[tuple[str, nn.Module]]]


def bare_trace(model: nn.Module) -> fx.Graph:
    """Trace ``model`` once with plain ``torch.fx``, which is what any tool built on it pays."""
    graph = fx.Tracer().trace(model)
    # Plain fx leaves constants on the model, and the next trace would have to step over them.
    for name in [name for name in vars(model) if name.startswith("_tensor_constant")]:
        delattr(model, name)
    return graph


def torchvision_names(model: nn.Module) -> list[str]:
    """List the nodes of eval mode with torchvision's tool."""
    _, names = feature_extraction.get_graph_node_names(model, suppress_diff_warning=True)
    return list(names)


def torchvision_extractor(model: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """Make an extractor with torchvision's tool."""
    extractor: nn.Module = feature_extraction.create_feature_extractor(
        model, list(nodes), suppress_diff_warning=True
    )
    return extractor


class Truncated(nn.Module):
    """The floor: runs the model's own submodules up to the last feature, and keeps the features.

    Args:
        steps: submodules by name, in the order in which they run.
        keep: the features to return; steps after the last of them are left out.
        copied: features that the next step would overwrite in place.

    """

    def __init__(
        self,
        steps: Iterable[tuple[str, nn.Module]],
        keep: Collection[str],
        copied: Collection[str] = (),
    ) -> None:
        super().__init__()
        run = list(steps)
        last = max(index for index, (name, _) in enumerate(run) if name in keep)
        self._steps = [(step, name, name in keep) for name, step in run[: last + 1]]
        self._copied = frozenset(copied)

    def forward(self, x: torch.Tensor) -> Features:
        features = {}
        for step, name, kept in self._steps:
            x = step(x)
            if kept:
                features[name] = x.clone() if name in self._copied else x
        return features


def resnet_steps(model: Any) -> list[tuple[str, nn.Module]]:
    """Return the steps of a torchvision ResNet before its head."""
    names = "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4".split()
    return [(name, getattr(model, name)) for name in names]


def timm_resnet_steps(model: Any) -> list[tuple[str, nn.Module]]:
    """Return the steps of a ResNet of timm before its head."""
    names = "conv1 bn1 act1 maxpool layer1 layer2 layer3 layer4".split()
    return [(name, getattr(model, name)) for name in names]


def features_steps(model: Any) -> list[tuple[str, nn.Module]]:
    """Return the steps before the head of a torchvision AlexNet, DenseNet or SwinTransformer."""
    return [(f"features.{name}", step) for name, step in model.features.named_children()]


def maxvit_steps(model: Any) -> list[tuple[str, nn.Module]]:
    """Return the steps of a torchvision MaxVit before its head."""
    blocks = model.blocks.named_children()
    return [("stem", model.stem), *((f"blocks.{name}", block) for name, block in blocks)]


def vit_steps(model: Any) -> list[tuple[str, nn.Module]]:
    """Return the steps of a torchvision VisionTransformer before its last normalisation."""
    layers = model.encoder.layers.named_children()
    return [
        ("stem", _VitStem(model)),
        *((f"encoder.layers.{name}", layer) for name, layer in layers),
    ]


class _VitStem(nn.Module):
    """Patches, class token and position embedding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        model = self._model
        x = model.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        encoder = model.encoder
        embedded: torch.Tensor = encoder.dropout(x + encoder.pos_embedding)
        return embedded


def hooked(model: nn.Module, nodes: Sequence[str]) -> Extract:
    """Run all of ``model`` with a plain forward hook on each of the modules ``nodes``."""
    modules = {node: model.get_submodule(node) for node in nodes}

    def extract(x: torch.Tensor) -> Features:
        features: Features = {}

        def keep(node: str) -> Any:
            return lambda _module, _args, output: features.__setitem__(node, output)

        handles = [m.register_forward_hook(keep(node)) for node, m in modules.items()]
        model(x)
        for handle in handles:
            handle.remove()
        return features

    return extract
