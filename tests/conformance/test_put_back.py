"""Rule M5: what a forward does to tensors is taken back after listing, creating and verifying."""

from __future__ import annotations

import contextlib
import copy
import os
import random

import numpy
import pytest
import torch
from torch import nn

import featuretap
from support import copied, identical, snapshot
from zoo import linear

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


class Swaps(nn.Module):
    """Works with other statistics, and takes them back at its very end."""

    def __init__(self):
        super().__init__()
        self.norm, self.lin = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x):
        kept = self.norm.running_mean.clone()
        self.norm.running_mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
        y = self.lin(self.norm(x))
        self.norm.running_mean.copy_(kept)
        return y


class Scales(nn.Module):
    """Scales its argument for a while."""

    def __init__(self):
        super().__init__()
        self.norm, self.lin = nn.Identity(), nn.Linear(4, 4)

    def forward(self, x):
        x.mul_(2)
        y = self.lin(self.norm(x))
        x.div_(2)
        return y


@pytest.mark.parametrize("kind", [Swaps, Scales])
@pytest.mark.parametrize("example", [(), (X.clone(),)])
def test_M5_what_a_forward_takes_back_after_the_last_node_is_taken_back(extract, kind, example):
    model, x, seen = kind().eval(), X.clone(), []
    with model.norm.register_forward_hook(lambda _m, _a, value: seen.append(value.clone())):
        model(x)
    before = snapshot(model)[:-2]
    extractor = extract(model, ["norm"], example_args=example or None)
    for _ in range(3):
        assert torch.equal(extractor(x)["norm"], seen[0])
        assert torch.equal(x, X)
    assert [entry[4:] for entry in snapshot(model)[:-2]] == [entry[4:] for entry in before]


class Counts(nn.Module):
    """Counts its calls in a buffer, once a call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        self.calls.add_(1)
        return self.two(self.one(x))


@pytest.mark.only("fx", why="the hooks backend sees what was run, and cuts nothing out")
def test_C1_a_buffer_that_is_written_once_needs_nothing_after_the_last_node(extract):
    model = Counts().eval()
    extractor = extract(model, ["one"])
    assert "two.weight" not in extractor.state_dict()
    extractor(X)
    assert model.calls == 1


class Writes(nn.Module):
    """Writes a parameter before the layers run."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = linear(1), linear(2), how

    def forward(self, x):
        if self.how == "data":
            self.first.weight.data.mul_(2)
        elif self.how == "view":
            self.first.weight.data[0].add_(1)
        elif self.how == "all":
            for parameter in self.parameters():
                parameter.data.mul_(2)
        else:
            with torch.no_grad():
                self.first.weight.mul_(2)
        return self.second(self.first(x))


@pytest.mark.parametrize("how", ["data", "view", "no_grad", "all"])
@pytest.mark.parametrize("earlier", [0, 2])
def test_M5_a_call_that_fails_leaves_the_parameters_as_they_were(extract, how, earlier):
    model = Writes(how)
    extractor = extract(model, ["second"])
    for _ in range(earlier):
        extractor(torch.ones(2, 4))
    before = copied(model.state_dict())
    with pytest.raises(RuntimeError, match="shape"):
        extractor(torch.ones(2, 5))  # no layer takes this
    assert identical(copied(model.state_dict()), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


class Draws(nn.Module):
    """Draws random numbers of Python and NumPy, sets a gradient and an environment variable."""

    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        x = x * (random.random() + numpy.random.random())
        self.lin.weight.grad = torch.ones(4, 4)
        os.environ["FEATURETAP_TEST"] = "set"
        return self.lin(x)


@pytest.mark.only("hooks", why="fx refuses such a forward")
@pytest.mark.parametrize("earlier", [0, 2])
def test_M5_a_call_that_fails_leaves_the_process_as_it_was(extract, monkeypatch, earlier):
    model = Draws()
    extractor = extract(model, ["lin"])
    monkeypatch.delenv("FEATURETAP_TEST", raising=False)
    for _ in range(earlier):
        extractor(torch.ones(2, 4))
    monkeypatch.delenv("FEATURETAP_TEST", raising=False)
    model.lin.weight.grad = None
    states = random.getstate(), numpy.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError, match="shape"):
        extractor(torch.ones(2, 5))
    assert model.lin.weight.grad is None
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states
    assert "FEATURETAP_TEST" not in os.environ


class Holder:
    """An object of the user's."""

    def __init__(self):
        self.tensor = torch.zeros(4)


class WritesWhatItKeeps(nn.Module):
    """Writes a tensor that is neither parameter nor buffer."""

    def __init__(self, where):
        super().__init__()
        self.plain, self.listed = torch.zeros(4), [torch.zeros(4)]
        self.named, self.holder = {"a": torch.zeros(4)}, Holder()
        self.where, self.lin = where, linear(1)

    @property
    def kept(self):
        return {
            "plain": self.plain,
            "listed": self.listed[0],
            "named": self.named["a"],
            "held": self.holder.tensor,
        }[self.where]

    def forward(self, x):
        self.kept.add_(1)
        return self.lin(x) + self.kept[: x.shape[0], None]


@pytest.mark.parametrize("where", ["plain", "listed", "named", "held"])
@pytest.mark.parametrize("earlier", [0, 2])
def test_M5_a_call_that_fails_leaves_tensors_that_are_no_buffers_as_they_were(
    extract, where, earlier
):
    model = WritesWhatItKeeps(where)
    extractor = extract(model, ["lin", "add"])
    for number in range(1, earlier + 1):
        assert identical(extractor(X)["add"], model.lin(X) + number)
    with pytest.raises(RuntimeError, match="shape"):
        extractor(torch.ones(2, 5))
    assert identical(model.kept, torch.full((4,), float(earlier)))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_M5_a_lazy_layer_stays_made_if_its_first_call_fails(extract):
    """As of the model itself: it is no longer lazy, and the next call works."""
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(3, 2))
    extractor = extract(model, "")
    with pytest.raises(RuntimeError, match="shapes"):
        extractor(X)
    assert (type(model[0]), model[0].in_features) == (nn.Linear, 4)
    model[2] = nn.Linear(4, 2)
    if isinstance(extractor, torch.fx.GraphModule):
        setattr(extractor, "2", model[2])
    assert identical(extractor(X)[""], copy.deepcopy(model)(X))


class WritesInALeaf(nn.Module):
    """Cannot be traced, and so is one node; writes a parameter and what it keeps."""

    def __init__(self):
        super().__init__()
        self.scale, self.plain, self.named = nn.Parameter(torch.ones(4)), torch.zeros(4), {}
        self.named["a"] = torch.zeros(4)

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        with torch.no_grad():
            self.scale.mul_(0.5)
        self.plain.add_(1)
        self.named["a"].add_(1)
        return x * self.scale


@pytest.mark.parametrize("earlier", [0, 2])
def test_M5_a_call_that_fails_leaves_what_a_leaf_has_written_as_it_was(extract, earlier):
    model = nn.Sequential(WritesInALeaf(), nn.Unflatten(0, (2, 1)))
    extractor = extract(model, ["1"])
    for _ in range(earlier):
        extractor(X)
    leaf = model[0]
    before = copied([leaf.scale, leaf.plain, leaf.named])
    with pytest.raises(RuntimeError, match="sizes"):
        extractor(torch.ones(3, 4))
    assert identical([leaf.scale.detach(), leaf.plain, leaf.named], before)
