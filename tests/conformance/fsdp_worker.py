"""One of two processes: features of a model sharded by FSDP2, and a sharded extractor."""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import featuretap


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for name in ("0", "2"):
        fully_shard(model.get_submodule(name), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(backend: str, rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    plain, x = make(), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    names = ["0", "1", "2"]
    expected = {"0": plain[0](x), "1": plain[:2](x), "2": plain(x)}

    sharded = shard(make(), mesh)
    extractor = featuretap.create_feature_extractor(
        sharded, names, backend="auto" if backend == "fx" else backend
    )
    for _ in range(2):
        features = extractor(x)
        for name in names:
            assert torch.equal(features[name], expected[name]), name

    if backend != "fx":  # an extractor of hooks is made of a sharded model, and not sharded itself
        return
    inner = shard(featuretap.create_feature_extractor(make(), names, backend=backend), mesh)
    features = inner(x)
    for name in names:
        assert torch.equal(features[name], expected[name]), name
    features["2"].sum().backward()
    # Beside the model sharded alike: how gradients are averaged without a GPU is up to torch.
    sharded(x).sum().backward()
    for ours, theirs in zip(inner.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(whole(ours.grad), whole(theirs.grad))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    dist.destroy_process_group()
    # At the end of the interpreter a thread of gloo's now and then aborts the process.
    os._exit(0)
