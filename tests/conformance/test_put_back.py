"""Rule M5: what a forward does to tensors is taken back after listing, creating and verifying."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

import featuretap
from support import snapshot

X = torch.linspace(-1, 1, 8).view(2, 4)


class Net(nn.Module):
    """Each test gives it another forward."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("seen", torch.ones(4))
        self.register_buffer("table", torch.arange(6.0).view(2, 3))
        self.register_buffer("late", torch.empty(0))


def resizes_in_the_first_call(self, x):
    if self.late.numel() == 0:
        self.late.resize_(4).copy_(x.detach().amax(0))
    return self.lin(x) + self.late


def shrinks(self, x):
    self.seen.resize_(max(1, self.seen.numel() // 2))
    return self.lin(x) + self.seen.sum()


def exchanges_memory(self, x):
    self.seen.set_(self.seen * 2)
    return self.lin(x) + self.seen


def transposes(self, x):
    self.table.t_()
    return self.lin(x) + self.table[0].sum()


def adds_a_dimension(self, x):
    self.seen.unsqueeze_(0)
    return self.lin(x) + self.seen.sum()


def writes_with_a_graph(self, x):
    self.seen.mul_(self.lin(x).mean())
    return self.lin(x) + self.seen.detach()


def asks_for_gradients(self, x):
    self.seen.requires_grad_(True)
    return self.lin(x) + self.seen


def sets_a_gradient(self, x):
    self.lin.weight.grad = torch.ones(4, 4)
    return self.lin(x)


def goes_backward(self, x):
    with torch.enable_grad():
        self.lin(x).sum().backward()
    return self.lin(x)


FORWARDS = [
    resizes_in_the_first_call,
    shrinks,
    exchanges_memory,
    transposes,
    adds_a_dimension,
    writes_with_a_graph,
    asks_for_gradients,
    sets_a_gradient,
    goes_backward,
]


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("forward", FORWARDS)
def test_M5_a_tensor_has_its_size_memory_and_gradient_again(
    names_of, extract, forward, has_gradient
):
    model = type("Changes", (Net,), {"forward": forward})().eval()
    if has_gradient:
        model.lin.weight.grad = torch.zeros(4, 4)
    reference = copy.deepcopy(model)
    before = snapshot(model)
    for asked in (names_of, lambda *args, **kwargs: extract(args[0], "", **kwargs)):
        for example in ({}, {"example_args": (X,)}):
            with contextlib.suppress(featuretap.UntraceableModelError):
                asked(model, **example)
            assert snapshot(model) == before
    try:
        extractor = extract(model, "")
        featuretap.verify(extractor, model, X)
    except featuretap.UntraceableModelError:
        assert snapshot(model) == before
        return
    assert snapshot(model) == before
    for step in (1, 2, 3):
        assert torch.equal(extractor(X * step)[""], reference(X * step))
