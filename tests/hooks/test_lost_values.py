"""Values that a forward overwrites which no forward before it did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor as create
from support import identical


class Fickle(nn.Module):
    """Overwrites a sum where the input says so; its state moves in each forward."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.act = nn.Linear(4, 4), nn.BatchNorm1d(4), torch.relu

    def forward(self, x, noted=None):
        y = self.first(x)
        if isinstance(noted, list):
            noted.append(1)
        elif noted is not None:
            noted.add_(1)
        if x[0, 0] > 0:
            y.mul_(0)
        return y + 1

    def first(self, x):
        return self.act(self.norm(self.lin(x))) + torch.rand(4)


class FickleAlone(nn.Module):
    """The same of a model that only computes."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x, noted=None):
        y = self.first(x)
        if x[0, 0] > 0:
            y.mul_(0)
        return y + 1

    def first(self, x):
        return self.lin(x) + 1


@pytest.mark.parametrize("kind", [Fickle, FickleAlone])
@pytest.mark.parametrize("names", [["add", ""], ["lin", "add", ""]])
def test_V1_a_value_overwritten_in_a_later_call_alone_is_right(names, kind):
    """The forward runs again; what it does to the model and to random numbers is done once."""
    model = kind()
    reference, extractor = copy.deepcopy(model), create(model, names)
    for x in (-torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4) * 2):
        torch.manual_seed(1)
        first = copy.deepcopy(reference).first(x)
        torch.manual_seed(1)
        output, drawn_then = reference(x), torch.rand(1)
        torch.manual_seed(1)
        features = extractor(x)
        assert torch.rand(1) == drawn_then
        assert identical(features["add"], first)
        assert identical(features[""], output)
        assert identical(dict(model.named_buffers()), dict(reference.named_buffers()))


def counts(model):
    model.calls = 0

    def first(x):
        model.calls += 1
        return FickleAlone.first(model, x)

    model.first = first
    return lambda: model.calls


def has_a_hook(model):
    calls = []
    model.lin.register_forward_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


class GoesBack(FickleAlone):
    def first(self, x):
        y = super().first(x)
        y.sum().backward(retain_graph=True)
        return y


@pytest.mark.parametrize("prepare", [counts, has_a_hook])
def test_M5_a_forward_that_may_do_more_than_compute_does_not_run_again_for_a_lost_value(prepare):
    model, x = FickleAlone(), torch.ones(2, 4)
    done = prepare(model)
    extractor = create(model, ["add", ""])
    extractor(-x)
    with pytest.raises(RuntimeError, match="overwrote 'add' in place"):
        extractor(x)
    assert done() <= 2
    assert identical(extractor(x)["add"], model.lin(x) + 1)


def test_M5_a_forward_that_goes_backward_does_not_run_again_for_a_lost_value():
    model, x = GoesBack(), torch.ones(2, 4)
    extractor = create(model, ["add", ""])
    extractor(-x)
    with pytest.raises(RuntimeError, match="overwrote 'add' in place"):
        extractor(x)
    model.zero_grad()
    extractor(x)
    assert identical(model.lin.bias.grad, torch.full((4,), 2.0))


@pytest.mark.parametrize("noted", [list, lambda: torch.zeros(1)])
def test_V1_a_forward_that_changes_its_arguments_does_not_run_again_for_a_lost_value(noted):
    model, x = Fickle().eval(), torch.ones(2, 4)
    extractor = create(model, ["add", ""])
    extractor(-x, noted=noted())
    given = noted()
    with pytest.raises(RuntimeError, match="overwrote 'add' in place"):
        extractor(x, noted=given)
    assert len(given) == 1
    assert sum(given) == 1
    torch.manual_seed(1)
    first = model.first(x)
    torch.manual_seed(1)
    assert identical(extractor(x, noted=noted())["add"], first)
