"""Real models without weights, with an input small enough for two cores."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

UNTRACEABLE = ("rcnn", "retinanet", "fcos", "ssd", "raft")
"""Models whose forward branches on values: detection and optical flow."""
VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d")


def torchvision_names() -> list[str]:
    """All torchvision models that ``torch.fx`` can trace."""
    import torchvision

    return [
        name for name in torchvision.models.list_models() if not any(k in name for k in UNTRACEABLE)
    ]


def torchvision_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a torchvision model without weights, and an input."""
    import torchvision

    kwargs: dict[str, Any] = {"weights": None}
    if any(kind in name for kind in ("deeplab", "fcn", "lraspp")):
        kwargs["weights_backbone"] = None
    if "googlenet" in name or "inception" in name:
        kwargs["init_weights"] = False
    model = torchvision.models.get_model(name, **kwargs).eval()
    if any(kind in name for kind in VIDEO):
        size = 224 if "mvit" in name or name == "s3d" else 64
        return model, torch.randn(1, 3, 16, size, size)
    size = 224 if any(kind in name for kind in ("vit", "swin", "maxvit")) else 96
    return model, torch.randn(1, 3, *([299, 299] if "inception" in name else [size, size]))


def timm_names() -> list[str]:
    """One or two small timm models of most families."""
    path = Path(__file__).with_name("timm_models.csv")
    with path.open() as file:
        return [row["model"] for row in csv.DictReader(file)]


def timm_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a timm model without weights, and the smallest input it takes."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    channels, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    for size in (min(height, 128), height):
        x = torch.randn(1, channels, size, size * width // height)
        try:
            with torch.no_grad():
                model(x)
        except Exception:
            continue
        return model, x
    raise RuntimeError(f"{name} takes no input of {height} x {width}")


def models(
    library: str, only: list[str] | None = None
) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Yield name, model and input of every model of ``library`` (``"torchvision"`` or ``"timm"``)."""
    names = torchvision_names() if library == "torchvision" else timm_names()
    build = torchvision_model if library == "torchvision" else timm_model
    for name in names:
        if not only or name in only:
            yield name, *build(name)
