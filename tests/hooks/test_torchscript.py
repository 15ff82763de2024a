"""Modules of TorchScript are leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import identical

create = featuretap_hooks.create_feature_extractor
names_of = featuretap_hooks.get_graph_node_names
X = torch.ones(2, 4)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.l(x) + 1 if self.training else self.l(x)


def script():
    return torch.jit.script(Inner())


def trace():
    return torch.jit.trace(Inner(), (X,))


class Outer(nn.Module):
    def __init__(self, sub):
        super().__init__()
        self.pre, self.sub = nn.Linear(4, 4), sub

    def forward(self, x):
        return self.sub(self.pre(x)) * 2


@pytest.mark.parametrize("make", [script, trace])
def test_N1_a_module_of_torchscript_is_one_node(make):
    model = Outer(make())
    assert names_of(model, example_args=(X,)) == ["x", "pre", "sub", "mul"]
    assert names_of(model) == ["x", "pre", "sub"]
    for args in (None, (X,)):
        for nodes in (["sub"], ["sub", "mul"]):
            extractor = create(model, nodes, example_args=args)
            for _ in range(2):
                assert identical(extractor(X)["sub"], model.sub(model.pre(X)))


@pytest.mark.parametrize("make", [script, trace])
def test_M5_a_module_of_torchscript_is_put_back(make):
    model = Outer(make()).eval()
    model.sub.l.train()
    calls, flags = model.sub.calls.clone(), [module.training for module in model.modules()]
    buffer = model.sub.calls
    names_of(model, example_args=(X,))
    create(model, "sub", example_args=(X,))
    assert identical(model.sub.calls, calls)
    assert model.sub.calls is buffer
    assert [module.training for module in model.modules()] == flags


@pytest.mark.parametrize("make", [script, trace])
def test_E1_what_is_inside_of_torchscript_is_no_node(make):
    for name in ("sub.l", "sub.add"):
        with pytest.raises(featuretap.NodeNotFoundError, match="Did you mean 'sub'"):
            create(Outer(make()), name)


@pytest.mark.parametrize("make", [script, trace])
def test_N6_the_root_may_be_of_torchscript(make):
    model = make().eval()
    assert names_of(model, example_args=(X,)) == ["x"]
    for args in (None, (X,)):
        assert identical(create(model, "", example_args=args)(X)[""], model(X))


def test_M3_an_extractor_made_with_an_example_can_be_copied():
    model = nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 4)
    )
    extractor = create(model, ["1"], example_args=(X,))
    assert identical(copy.deepcopy(extractor)(X)["1"], model(X))
    assert extractor.state_dict().keys() == model.state_dict().keys()
