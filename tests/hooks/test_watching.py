"""Calls that are watched: what others see of them, what is known afterwards, what is let go."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from torch import nn

import featuretap
from featuretap_hooks import create_feature_extractor, get_graph_node_names

X = torch.arange(8.0).reshape(2, 4)
OTHERS_ON = torch._C._len_torch_function_stack()  # a default device is one


class Inside(nn.Module):
    """Does something with a sibling while it is watched."""

    def __init__(self, function):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.function = function
        self.seen = None

    def forward(self, x):
        y = self.lin(x)
        self.seen = self.function(self.lin)
        return y + 1


def deep(module):
    return copy.deepcopy(module)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("way", [copy.copy, deep, pickled])
def test_M5_a_copy_made_while_the_module_is_watched_is_a_module_of_its_own(way):
    model = Inside(way)
    create_feature_extractor(model, ["add"])(X)
    other = model.seen
    assert way is copy.copy or other.forward.__self__ is other
    if way is copy.copy:
        other._parameters = dict(other._parameters)
    other.weight = nn.Parameter(torch.eye(4))
    other.bias = nn.Parameter(torch.zeros(4))
    assert torch.equal(other(X), X)
    assert "forward" not in vars(model.lin)


def test_M5_a_copy_that_is_called_while_the_original_is_watched_has_its_own_weights():
    def zeroed(module):
        other = copy.copy(module)
        other._parameters = {name: torch.zeros_like(p) for name, p in module._parameters.items()}
        return other(X)

    model = Inside(zeroed)
    create_feature_extractor(model, ["add"])(X)
    assert torch.equal(model.seen, torch.zeros(2, 4))


class Momentum(nn.Module):
    """Makes its teacher of the student, in the first call, and calls it first."""

    def __init__(self, way):
        super().__init__()
        self.student = nn.Linear(4, 4)
        self.teacher = None
        self.way = way

    def forward(self, x):
        if self.teacher is None:
            self.teacher = self.way(self.student)
        return self.teacher(x + 1) - self.student(x)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("way", [copy.copy, deep, pickled])
def test_V1_what_a_copy_returns_is_no_value_of_the_original(way, early_stop):
    model = Momentum(way)
    extractor = create_feature_extractor(model, ["student"], early_stop=early_stop)
    for _ in range(3):
        assert torch.equal(extractor(X)["student"], model.student(X))
        hooks = model.teacher._forward_hooks, model.teacher._forward_pre_hooks
        assert list(map(len, hooks)) == [0, 0]
        pickle.dumps(model)


def test_M5_a_copy_that_is_called_later_has_no_hooks_from_then_on():
    model = Inside(deep)
    create_feature_extractor(model, ["lin"], early_stop=False)(X)
    model = pickled(model)
    assert torch.equal(model.seen(X), model.lin(X))
    assert not model.seen._forward_hooks
    assert not model.seen._forward_pre_hooks


def test_M5_a_watched_forward_has_its_signature_its_code_and_its_module():
    def look(module):
        forward = module.forward
        return inspect.signature(forward), forward.__code__, forward.__self__, forward.__globals__

    model = Inside(look)
    expected = look(model.lin)
    create_feature_extractor(model, ["add"])(X)
    assert model.seen == expected


def test_N1_a_forward_that_is_called_directly_is_the_callers():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return self.lin.forward(self.block.forward(x)) + 1

    names = list(get_graph_node_names(Direct(), example_args=(X,)))
    assert names == ["x", "block.0", "block.1", "lin.weight", "lin.bias", "linear", "add"]


def test_M5_a_forward_that_the_model_itself_exchanges_stays_exchanged():
    model = Inside(lambda module: vars(module).update(forward=torch.relu))
    create_feature_extractor(model, ["add"])(X)
    assert vars(model.lin)["forward"] is torch.relu


def test_M5_nothing_is_watched_once_the_last_value_is_there(monkeypatch):
    watched = []

    def forward(self, x):
        modes = torch._C._len_torch_function_stack() - OTHERS_ON
        watched.append(("forward" in vars(self), modes))
        return torch.relu_(x)

    # Torch's own layer: a model whose code keeps something is watched to its end.
    monkeypatch.setattr(nn.ReLU, "forward", forward)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.lin(x) + 1)

    model = nn.Sequential(Block(), nn.Linear(4, 4), Block())
    expected = model[0].lin(X) + 1
    extractor = create_feature_extractor(model, ["0.add"], early_stop=False)
    for _ in range(3):
        watched.clear()
        assert torch.equal(extractor(X)["0.add"], expected)
    assert watched == [(False, 0), (False, 0)]


@pytest.mark.parametrize("nodes", [["add", "lin", "getattr"], ["add"], ["lin"]])
def test_C1_features_die_with_their_last_user(nodes):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            y = self.lin(x) + 1
            return y.to(x.dtype).view(x.shape[0], -1).to(x.device)

    extractor = create_feature_extractor(Net(), [*nodes, ""])
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            features = extractor(X)
            tensors = [v for v in features.values() if isinstance(v, torch.Tensor)]
            alive = list(map(weakref.ref, tensors))
            del features, tensors
            assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()


def test_V1_a_hook_that_is_there_before_is_the_inside_of_the_module():
    model = Inside(lambda module: None)
    model.lin.register_forward_hook(lambda module, args, value: value * 2)
    features = create_feature_extractor(model, ["lin", "add"])(X)
    assert torch.equal(features["lin"], model.lin(X))
    assert torch.equal(features["add"], model(X))


def test_M5_an_error_deep_inside_leaves_every_scope():
    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(4, 4), nn.Flatten(5))
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            try:
                x = self.block(x)
            except IndexError:
                x = x * 2
            return self.lin(x) + 1

    model = Catches()
    features = create_feature_extractor(model, ["mul", "lin", "add"])(X)
    assert torch.equal(features["mul"], X * 2)
    assert torch.equal(features["add"], model(X))
    assert all("forward" not in vars(module) for module in model.modules())


def test_N9_a_dtype_that_was_read_before_other_modules_ran_is_still_known():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 3)
            self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            dtype = x.dtype
            y = self.lin(x)
            z = y.to(dtype)
            return self.block(z).to(dtype) + z.sum(dtype=dtype)

    model, x = Net().eval(), torch.randn(2, 3)
    expected = list(featuretap.get_graph_node_names(model, backend="fx"))
    assert "getattr" in expected
    assert (
        list(featuretap.get_graph_node_names(model, backend="hooks", example_args=(x,))) == expected
    )


class ScalesGradients(nn.Module):
    """Registers a hook on a value, as models do to scale gradients, or to keep them."""

    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.lin(x)
        y.register_hook(lambda gradient: gradient * 3)
        return self.head(y)


def test_V3_a_hook_that_the_forward_registers_on_a_tensor_is_on_the_feature():
    model = ScalesGradients()
    extractor = create_feature_extractor(model, ["lin", ""])
    (plain,) = torch.autograd.grad(model.lin(X).sum(), model.lin.weight)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(extractor(X)["lin"].sum(), model.lin.weight)
        assert torch.equal(gradient, plain * 3)
