"""Rules M5, C1, V3, M6: what a forward switches over for a while, and what it takes from others."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from stateful import net
from support import drawn, here, snapshot


def freezes_for_a_while(self, x):
    self.lin.weight.requires_grad_(False)
    y = self.lin(x)
    self.lin.weight.requires_grad_(True)
    return y + 1


def switches_a_flag(self, x):
    was = self.drop.training
    self.drop.eval()
    y = self.drop(x)
    self.drop.train(was)
    return self.lin(y)


def exchanges_data(self, x):
    old = self.lin.weight.data
    self.lin.weight.data = old * 2
    y = self.lin(x)
    self.lin.weight.data = old
    return y * 1


def switches_gradients(self, x):
    torch.set_grad_enabled(False)
    y = self.lin(x)
    torch.set_grad_enabled(True)
    return y * 3


def switches_the_default_dtype(self, x):
    torch.set_default_dtype(torch.float64)
    y = self.lin(x)
    torch.set_default_dtype(torch.float32)
    return y * 3


def enters_autocast(self, x):
    region = torch.autocast("cpu", torch.bfloat16)
    region.__enter__()
    y = self.lin(x)
    region.__exit__(None, None, None)
    return y * 3


def hooks_for_a_while(self, x):
    handle = self.lin.register_forward_hook(lambda *_: None)
    y = self.lin(x)
    handle.remove()
    return y * 3


def scales_a_weight(self, x):
    with torch.no_grad():
        self.lin.weight.mul_(2)
    y = self.lin(x)
    with torch.no_grad():
        self.lin.weight.div_(2)
    return y * 3


def overwrites_a_weight(self, x):
    kept = self.lin.weight.detach().clone()
    with torch.no_grad():
        self.lin.weight.copy_(kept * 2)
        y = self.lin(x)
        self.lin.weight.copy_(kept)
    return y * 3


def converts_a_module(self, x):
    self.lin.double()
    y = self.lin(x.double())
    self.lin.float()
    return y * 3


def sets_a_rate(self, x):
    self.drop.p = 0.25
    y = self.drop(x)
    self.drop.p = 0.5
    return self.lin(y)


def sets_an_attribute_in_a_region(self, x):
    with self.counted():
        y = self.lin(x)
    return y * 3


def exchanges_submodules_for_a_while(self, x):
    self.lin, self.drop = self.drop, self.lin
    y = self.lin(x)
    self.lin, self.drop = self.drop, self.lin
    return y * 3


SWITCHING = [
    (converts_a_module, "lin"),
    (sets_an_attribute_in_a_region, "lin"),
    (exchanges_submodules_for_a_while, "drop"),
    (switches_a_flag, "drop"),
    (exchanges_data, "lin"),
    (freezes_for_a_while, "lin"),
    (switches_gradients, "lin"),
    (switches_the_default_dtype, "lin"),
    (enters_autocast, "lin"),
    (hooks_for_a_while, "lin"),
]


def state_of_process():
    takes_device = hasattr(torch, "get_autocast_dtype")
    autocast = torch.is_autocast_enabled("cpu") if takes_device else torch.is_autocast_cpu_enabled()
    return torch.is_grad_enabled(), torch.get_default_dtype(), autocast


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize(("function", "node"), SWITCHING, ids=lambda v: getattr(v, "__name__", ""))
def test_M5_C1_a_forward_that_ends_early_leaves_nothing_switched(extract, function, node, example):
    model, x = net(function).train(), torch.ones(3, 4)
    torch.manual_seed(1)
    before, process = snapshot(model), state_of_process()
    options = {"example_args": (x,)} if example else {}
    # fx refuses some of these, in one mode or in both.
    refused = (featuretap.UntraceableModelError, featuretap.NodeNotFoundError)
    extractor = None
    with contextlib.suppress(refused):
        extractor = extract(model, [node], **options)
    assert snapshot(model) == before
    assert state_of_process() == process
    for _ in range(2 if extractor else 0):
        with contextlib.suppress(refused):
            extractor(x)
        torch.manual_seed(1)  # some of them draw
        assert snapshot(model) == before
        assert state_of_process() == process


@pytest.mark.parametrize(
    ("function", "node"),
    [(scales_a_weight, "lin"), (overwrites_a_weight, "lin"), (sets_a_rate, "drop")],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_M5_C1_what_is_written_and_written_back_is_back_after_an_early_end(extract, function, node):
    model, x = net(function).train(), torch.ones(3, 4)
    weight = model.lin.weight.detach().clone()
    torch.manual_seed(1)
    expected = model(x)
    with contextlib.suppress(featuretap.UntraceableModelError):  # fx, where a rate is set
        extractor, whole = extract(model, [node]), extract(model, [node, ""])
        for _ in range(3):
            torch.manual_seed(1)
            features = whole(x)
            torch.manual_seed(1)
            assert torch.equal(extractor(x)[node], features[node])
            assert torch.equal(features[""], expected)
            assert torch.equal(model.lin.weight, weight)
            assert model.drop.p == 0.5


def test_V1_a_feature_that_is_a_parameter_outlives_a_forward_that_writes_it(extract):
    def function(self, x):
        with torch.no_grad():
            self.lin.weight.add_(1)
        return F.linear(x, self.lin.weight) + self.lin.weight.view(4, 4)[0]

    model, x = net(function), torch.ones(3, 4)
    extractor = extract(model, ["lin.weight", "view", ""])
    for _ in range(3):
        features = extractor(x)
        kept = {name: value.clone() for name, value in features.items()}
        model(x)
        extractor(x)
        assert all(torch.equal(value, kept[name]) for name, value in features.items())


@pytest.mark.only("hooks", why="fx refuses such a forward")
def test_M5_a_forward_that_fails_leaves_nothing_switched(extract, names_of):
    def function(self, x):
        self.drop.eval()
        self.lin.weight.requires_grad_(False)
        torch.set_grad_enabled(False)
        y = self.lin(x).sum(7)
        torch.set_grad_enabled(True)
        return y

    model = net(function).train()
    before, process = snapshot(model), state_of_process()
    extractor, x = extract(model, ["lin", ""]), torch.ones(3, 4)
    for fails in (
        lambda: extractor(x),
        lambda: names_of(model, example_args=(x,)),
        lambda: extract(model, ["lin", ""], example_args=(x,)),
        lambda: featuretap.verify(extractor, model, x),
    ):
        with pytest.raises((IndexError, featuretap.UntraceableModelError), match="out of range"):
            fails()
        assert model.lin.weight.requires_grad
        assert snapshot(model) == before
        assert state_of_process() == process


# -- V3 ------------------------------------------------------------------------------------------------


def test_V3_detach_in_place_takes_no_gradient_from_a_feature_before_it(extract):
    def function(self, x):
        y = self.lin(x) * 2
        y.detach_()
        return F.relu(y)

    model = net(function)
    extractor = extract(model, ["mul", "detach_", "relu"])
    for _ in range(2):
        features = extractor(torch.ones(3, 4))
        assert features["mul"].requires_grad
        assert not features["detach_"].requires_grad


def clamps_without_gradients(self, x):
    y = self.lin(x)
    with torch.no_grad():
        z = y.clamp_(-1, 1)
    return self.drop(z)


def passes_on_without_gradients(self, x):
    y = self.lin(x)
    with torch.no_grad():
        z = y.contiguous()
    return self.drop(z)


@pytest.mark.parametrize(
    ("function", "node"),
    [(clamps_without_gradients, "clamp_"), (passes_on_without_gradients, "contiguous")],
    ids=lambda v: getattr(v, "__name__", ""),
)
@pytest.mark.parametrize("beside", [[], ["drop"], ["lin"], [""]])
def test_V3_V1_a_feature_has_the_gradient_of_its_value_whatever_else_is_asked_for(
    extract, function, node, beside
):
    model, x = net(function).eval(), torch.ones(3, 4)
    expected = torch.autograd.grad(model.lin(x).sum(), model.lin.weight)
    extractor = extract(model, [node, *beside])
    for _ in range(3):
        feature = extractor(x)[node]
        assert all(map(torch.equal, torch.autograd.grad(feature.sum(), model.lin.weight), expected))


def test_V3_a_copy_does_not_end_an_autocast_region(extract):
    def function(self, x):
        with torch.autocast(here().type, dtype=torch.bfloat16):
            for _ in range(3):
                x = F.relu(self.lin(x), inplace=True)
        return x

    model, x = net(function), drawn(16, 4)
    weight = model.lin.weight
    expected = torch.autograd.grad(model(x).float().pow(2).sum(), weight)
    extractor = extract(model, ["lin", "lin_1", ""])
    for _ in range(2):
        found = torch.autograd.grad(extractor(x)[""].float().pow(2).sum(), weight)
        assert all(map(torch.equal, found, expected))


@pytest.mark.only("hooks", why="a graph inside of a graph has its own test")
def test_M6_N1_what_is_made_of_the_features_of_an_inner_extractor_is_a_node(extract):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)["add"].mul(2)

    def function(self, x):
        return self.lin(x) + 1

    model, x = net(function), torch.ones(2, 4)
    for example in ({}, {"example_args": (x,)}):
        outer = extract(Outer(extract(model, ["add"])), ["inner.add", "mul"], **example)
        for _ in range(3):
            assert torch.equal(outer(x)["mul"], model(x) * 2)


def assigns_data(self, x):
    y = self.lin(x)
    self.lin.weight.data = self.lin.weight.data * 1.5
    return y * 1


def writes_a_result_to_a_buffer(self, x):
    self.last.copy_(self.lin(x)[0])
    return self.last * 2


@pytest.mark.only("hooks", why="fx refuses the first, and runs nothing")
@pytest.mark.parametrize("function", [assigns_data, writes_a_result_to_a_buffer])
def test_M5_an_example_leaves_memory_and_gradients_of_the_models_tensors(
    names_of, extract, function
):
    model, x = net(function), torch.ones(3, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    names_of(model, example_args=(x,))
    extract(model, "", example_args=(x,))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert pointers == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert all(tensor.is_leaf for tensor in (*model.parameters(), *model.buffers()))
