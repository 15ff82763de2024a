"""Rules V: values."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from support import copied, identical
from zoo import ZOO, NestedScopes, OverwrittenOutput


def prepared(name, device, mode):
    model = ZOO[name]().to(device)
    args = tree_map(lambda value: value.to(device), model.example())
    return model.train(mode == "train"), args


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ZOO)
def test_V1_every_node_of_the_zoo_is_the_real_value(extract, device, name, mode):
    """All nodes asked for together."""
    model, args = prepared(name, device, mode)
    expected = {key: copied(value) for key, value in model.reference(*copied(args)).items()}
    extractor = extract(model, list(expected), suppress_diff_warning=True)
    torch.manual_seed(0)
    features = extractor(*copied(args))
    assert list(features) == sorted(features, key=list(features).index)
    assert features.keys() == expected.keys()
    for key, value in expected.items():
        assert identical(features[key], value), key


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ZOO)
def test_V1_requesting_one_node_never_changes_another(extract, device, name, mode):
    """Each node asked for alone has the value it has among all."""
    model, args = prepared(name, device, mode)
    state = copied(model.state_dict())
    for key, value in model.reference(*copied(args)).items():
        value = copied(value)
        model.load_state_dict(state)
        extractor = extract(model, [key], suppress_diff_warning=True)
        torch.manual_seed(0)
        assert identical(extractor(*copied(args))[key], value), key


@pytest.mark.parametrize("name", ZOO)
def test_V1_the_model_output_is_the_real_output(extract, device, name):
    model, args = prepared(name, device, "eval")
    state = copied(model.state_dict())
    extractor = extract(model, "", suppress_diff_warning=True)
    torch.manual_seed(0)
    expected = copied(model(*copied(args)))
    model.load_state_dict(state)
    torch.manual_seed(0)
    assert identical(extractor(*copied(args))[""], expected)


def test_V1_two_names_of_one_node_are_both_there(extract):
    model = NestedScopes().eval()
    features = extract(model, ["stage", "stage.1.act", "stage.1"])(*model.example())
    assert set(features) == {"stage", "stage.1.act", "stage.1"}
    assert identical(features["stage"], features["stage.1.act"])


def test_V1_the_users_later_writes_do_not_reach_a_second_feature(extract):
    """A copy is a copy: writing one feature leaves the other."""
    model = OverwrittenOutput().eval()
    features = extract(model, ["block", "add"])(*model.example())
    before = features["block"].clone()
    features["add"].detach().zero_()
    assert identical(features["block"], before)


def test_V2_random_draws_are_new_on_every_call(extract):
    model = ZOO["RandomDraw"]()
    extractor = extract(model, "add")
    (x,) = model.example()
    assert not identical(extractor(x), extractor(x))


def test_V2_buffers_are_read_at_call_time(extract):
    model = ZOO["FrozenStatistics"]()
    extractor = extract(model, "mul_1")
    model.load_state_dict({**model.state_dict(), "running_var": torch.ones(4)})
    (x,) = model.example()
    assert identical(extractor(x)["mul_1"], model(x))


def test_V2_a_leading_branch_that_nobody_needs_still_draws_its_random_numbers(extract):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    model = TwoHeads().train()
    x = torch.ones(64)
    extractor = extract(model, "used")
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert identical(extractor(x)["used"], expected)


def test_V3_gradients_flow_through_features_as_in_the_model(extract):
    model = NestedScopes()
    x = model.example()[0].requires_grad_()
    features = extract(model, ["stage.0.lin", "stage"])(x)
    (features["stage.0.lin"].sum() + features["stage"].square().sum()).backward()
    ours = [x.grad.clone(), *(parameter.grad.clone() for parameter in model.parameters())]
    x.grad = None
    model.zero_grad()
    first = model.stage[0].lin(x)
    stage = model.stage[1].lin(first.relu()).relu()
    (first.sum() + stage.square().sum()).backward()
    real = [x.grad, *(parameter.grad for parameter in model.parameters())]
    assert all(map(identical, ours, real))


def test_V3_a_frozen_region_gets_no_gradient(extract):
    model = ZOO["FrozenBackbone"]()
    features = extract(model, ["backbone", "head"])(*model.example())
    assert not features["backbone"].requires_grad
    features["head"].sum().backward()
    assert model.backbone.weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("name", ["constant_", "zeros_", "normal_", "uniform_", "kaiming_uniform_"])
def test_V1_a_feature_that_torch_nn_init_overwrites_keeps_its_value(extract, name):
    function, more = getattr(nn.init, name), (3.0,) if name == "constant_" else ()

    class Initializes(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            h = self.lin(x).detach()
            y = h + 1
            function(h, *more)
            return y + h

    torch.manual_seed(0)
    model, x = Initializes(), torch.ones(3, 4)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    features = extract(model, ["lin", "detach", "add", ""])(x)
    assert torch.equal(features[""], expected)
    assert torch.equal(features["lin"], model.lin(x))
    assert torch.equal(features["detach"], model.lin(x))
    assert torch.equal(features["add"], model.lin(x) + 1)


class FunctionBeforeModuleInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.block = nn.Linear(2, 4), ZOO["FunctionBeforeModule"]()

    def forward(self, x):
        return self.block(self.before(x))


@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")
@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export: since torch 2.1")
def test_N5_M4_an_operation_in_a_block_is_the_same_in_an_exported_program(extract, names_of):
    model, x = FunctionBeforeModuleInside().eval(), torch.randn(3, 2)
    options = inspect.signature(torch.export.export).parameters
    not_strict = {"strict": False} if "strict" in options else {}
    names = [n for n in names_of(model, example_args=(x,)) if n.startswith("block.")]
    assert {"block.relu", "block.relu_1"} <= {*names}
    for name in names:
        extractor = extract(model, [name])  # with an example, export meets parameters it has not
        expected = extractor(x)[name]
        program = torch.export.export(extractor, (x,), **not_strict)
        assert identical(program.module()(x)[name], expected), name
