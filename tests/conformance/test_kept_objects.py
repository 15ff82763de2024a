"""Rules N6, V1, M2, M5: what a model keeps between calls, and what an extractor has of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap
from support import identical

X = torch.linspace(-1, 1, 8).view(2, 4)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else self.linear(x) + 1


@pytest.mark.sees_operations
def test_N6_every_call_of_a_type_is_there_or_none():
    model = nn.Sequential(nn.Linear(4, 4), Branches())
    message = r"not every call of a Linear is a node: some are inside of '1', which is one node"
    with pytest.raises(featuretap.NodeNotFoundError, match=message):
        featuretap.create_feature_extractor(model, {nn.Linear}, backend="fx")
    with pytest.warns(featuretap.FallbackWarning, match="fx cannot look into '1'"):
        extractor = featuretap.create_feature_extractor(model, {nn.Linear})
    assert list(extractor(X)) == ["0", "1.linear"]


class KeepsItsBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("position", torch.ones(4))

    def forward(self, x):
        self.position = self.position.to(x.device)
        return x + self.position


def test_M5_a_buffer_that_an_operation_gives_back_stays_the_same_object(backend):
    model = KeepsItsBuffer()
    buffer = model.position
    try:
        extractor = featuretap.create_feature_extractor(model, ["add"], backend=backend)
    except featuretap.UntraceableModelError:
        assert backend == "fx"
        return
    for _ in range(2):
        with torch.no_grad():
            assert identical(extractor(X)["add"], X + 1)
        assert model.position is buffer


class KeepsCounts(nn.Module):
    def __init__(self):
        super().__init__()
        self.counts = [torch.zeros(3)]

    def forward(self, x):
        self.counts[0][0] += 1
        return x * 2


@pytest.mark.parametrize("example", [None, (X,)])
def test_M5_an_item_of_a_tensor_in_a_list_is_left_alone(extract, names_of, example):
    model = KeepsCounts()
    names_of(model, example_args=example)
    try:
        extractor = extract(model, ["mul"], example_args=example)
    except featuretap.UntraceableModelError:
        extractor = None
    assert model.counts[0].tolist() == [0, 0, 0]
    if extractor is not None:
        assert identical(extractor(X)["mul"], X * 2)


class HasState(nn.Module):
    """Not a cache: what is put where nothing was is written later."""

    def __init__(self):
        super().__init__()
        self.weight, self.state = nn.Parameter(torch.ones(4)), {}

    def forward(self, x):
        if "mean" not in self.state:
            self.state["mean"] = torch.zeros(4)
        self.state["mean"].mul_(0.5).add_(x.detach().mean(0))
        return x * self.weight + self.state["mean"]


@pytest.mark.only("hooks", why="to fx the tensor is made in each call")
@pytest.mark.parametrize("is_warm", [True, False])
def test_V1_state_in_a_dict_is_no_cache(extract, is_warm):
    model, real = HasState(), HasState()
    if is_warm:
        assert identical(model(X), real(X))
    extractor = extract(model, ["add"])
    for _ in range(3):
        assert identical(extractor(X)["add"], real(X))
    assert identical(model.state["mean"], real.state["mean"])


class SwitchesForAWhile(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.current = None

    def forward(self, x):
        self.current = x
        y = self.second(self.first(x) * 2)
        self.current = None
        return y


@pytest.mark.only("hooks", why="a graph ends where the last node is")
def test_M2_an_extractor_whose_forward_goes_to_its_end_converts_all_of_it(extract):
    extractor = extract(SwitchesForAWhile(), ["mul"], example_args=(X,))
    assert extractor.double()(X.double())["mul"].dtype is torch.float64
