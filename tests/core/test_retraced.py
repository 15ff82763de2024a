"""Rule V1: other tools that trace an extractor of fx keep the copies that protect its features."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import fx, nn

from featuretap import create_feature_extractor
from support import identical

X = torch.linspace(-1, 1, 8).view(2, 4)


class Inside(nn.Module):
    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, x):
        return self.extractor(x)


class Pair(nn.Module):
    def forward(self, x):
        return x, [x + 1]


class Overwrites(nn.Module):
    """What is asked for is in a container, and is overwritten."""

    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, x):
        y, (z,) = self.pair(x * 2)
        z.relu_()
        return y.relu_() + z


@pytest.mark.parametrize("way", [lambda e: e, Inside], ids=["itself", "inside"])
@pytest.mark.parametrize(
    ("model", "nodes"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), ["0", "1"]),
        (Overwrites(), ["pair", "add"]),
    ],
    ids=["tensor", "container"],
)
def test_V1_an_extractor_that_torch_fx_traces_keeps_its_copies(model, nodes, way):
    extractor = create_feature_extractor(model.eval(), nodes, backend="fx")
    expected = extractor(X)
    traced = fx.symbolic_trace(way(extractor))
    assert identical(dict(traced(X)), dict(expected))
    assert identical(dict(pickle.loads(pickle.dumps(traced))(X)), dict(expected))


def test_M4_graph_passes_find_the_modules_and_the_extractor_is_freed_without_them():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4)
    extractor = create_feature_extractor(model, ["0"], backend="fx")
    for one in (extractor, copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        graph = one.graph
        assert graph.owning_module is one
        graph.eliminate_dead_code()
        graph.lint()
        one.recompile()
        assert torch.equal(one(x)["0"], model[0](x))
    unused = create_feature_extractor(model, ["0"], backend="fx")
    unused(x)
    freed = weakref.ref(unused)
    del unused
    assert freed() is None
