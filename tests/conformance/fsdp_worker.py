"""One of two processes: features of a model sharded by FSDP2, and a sharded extractor."""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import featuretap


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(backend: str, rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    plain, x = make(), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    names = ["0", "1", "2"]
    expected = {"0": plain[0](x), "1": plain[:2](x), "2": plain(x)}

    sharded = make()
    for layer in (sharded[0], sharded[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    extractor = featuretap.create_feature_extractor(
        sharded, names, backend="auto" if backend == "fx" else backend
    )
    for _ in range(2):
        features = extractor(x)
        for name in names:
            assert torch.equal(features[name], expected[name]), name

    inner = featuretap.create_feature_extractor(make(), names, backend=backend)
    if backend == "fx":
        for layer in (inner.get_submodule("0"), inner.get_submodule("2")):
            fully_shard(layer, mesh=mesh)
        fully_shard(inner, mesh=mesh)
    features = inner(x)
    for name in names:
        assert torch.equal(features[name], expected[name]), name
    features["2"].sum().backward()
    expected["2"].sum().backward()
    gradients = [whole(parameter.grad) for parameter in inner.parameters()]
    for ours, theirs in zip(gradients, plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs.grad)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
