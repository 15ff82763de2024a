"""One of two processes: train an extractor under DDP with default settings, and compare."""

from __future__ import annotations

import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import featuretap


def main(backend: str, rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 4)
    )
    extractor = featuretap.create_feature_extractor(
        model, ["1", "2"], backend=backend, example_args=(torch.zeros(8, 4),)
    )
    parallel = DistributedDataParallel(extractor)
    for step in range(2):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        features = parallel(x)
        (features["1"].sum() + features["2"].square().sum()).backward()
    gradients = [parameter.grad for parameter in extractor.parameters()]
    for gradient in gradients:
        mine = gradient.clone()
        dist.all_reduce(mine)
        assert torch.allclose(mine / 2, gradient)
    assert len(gradients) == 4
    assert model[3].weight.grad is None
    dist.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    # torch 2.0 takes down a DDP module and its process group with the GIL held, and waits about one
    # time in ten for a thread that wants it (a plain model does the same): leave without.
    os._exit(0)
