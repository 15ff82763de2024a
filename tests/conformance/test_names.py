"""Rules N: names."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from support import copied, drawn, identical, with_forward
from zoo import ZOO, DynamicInside, NestedScopes, ReusedModules


def test_N1_arithmetic_on_buffers_and_constants_is_no_node(names_of):
    assert names_of(ZOO["FrozenStatistics"]()) == ["x", "weight", "mul", "mul_1"]
    assert names_of(ZOO["MadeInForward"]()) == ["x", "mul", "mul_1"]


def test_N1_the_inputs_are_nodes_also_fixed_ones(names_of, extract):
    model = ZOO["OptionalArgument"]()
    assert names_of(model) == ["x", "mask", "scale", "flag", "mul"]
    features = extract(model, ["mask", "scale", "mul"])(torch.ones(1))
    assert features["mask"] is None
    assert features["scale"] == 2.0


def test_N2_a_name_is_the_scope_and_the_operation(names_of):
    assert names_of(NestedScopes()) == [
        "x",
        "stage.0.lin",
        "stage.0.act",
        "stage.1.lin",
        "stage.1.act",
        "mul",
    ]


def test_N2_trap6_another_method_of_a_submodule_is_named_by_the_calling_scope(names_of, extract):
    model = ZOO["OtherMethod"]()
    assert names_of(model) == ["x", "enc.lin", "add", "mul"]
    with pytest.raises(ValueError, match="'enc' is no node"):
        extract(model, "enc", example_args=model.example())


def test_N2_trap8_a_parameter_read_has_its_own_path(names_of):
    assert names_of(ZOO["ParameterRead"]()) == ["x", "encoder.pos_embedding", "encoder.add"]


def test_N3_operations_are_called_as_in_fx(names_of):
    class Operations(nn.Module):
        def forward(self, x):
            y = x + 1
            y += 1
            y = torch.add(y, 1)
            y = y.add_(1)
            y = y.flatten(1)[0]
            y = F.scaled_dot_product_attention(x, x, x) + y.shape[0]
            y = (y > 0) & (y < 1) | ~(y == 0)
            y = 1 - (2 / y.float() % 3) ** 2
            y /= 2
            return y.div(2) // 2

    example = (torch.ones(2, 4, 4),)
    assert names_of(Operations(), example_args=example) == [
        "x",
        "add",
        "add_1",
        "add_2",
        "add_",
        "flatten",
        "getitem",
        "scaled_dot_product_attention",
        "getattr",
        "getitem_1",
        "add_3",
        "gt",
        "lt",
        "and_",
        "eq",
        "invert",
        "or_",
        "float",
        "truediv",
        "mod",
        "pow",
        "sub",
        "truediv_1",
        "div",
        "floordiv",
    ]


def test_N4_trap9_repeats_are_counted_over_all_calls_of_the_module(names_of):
    assert names_of(ReusedModules()) == [
        "x",
        "block.lin",
        "block.act",
        "tanh",
        "block.lin_1",
        "block.act_1",
        "tanh_1",
    ]


def test_N5_trap1_digits_belong_to_the_name_of_a_module(names_of):
    assert names_of(ZOO["NumberedModules"]()) == ["x", "conv_1", "conv_2", "conv_3"]


def test_N5_trap2_an_argument_does_not_take_the_path_of_a_module(names_of):
    assert names_of(ZOO["ArgumentLikeModule"]()) == ["embedding_1", "embedding"]


def test_N5_trap3_a_function_does_not_take_the_path_of_a_module(names_of):
    names = names_of(ZOO["FunctionBeforeModule"]())
    assert names == ["x", "relu_1", "lin", "relu", "add", "relu_2"]


def test_N5_a_counted_name_steps_over_a_module(names_of):
    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_1 = nn.ReLU()

        def forward(self, x):
            return self.add_1(x + 1 + 1)

    assert names_of(Stepping(), example_args=(torch.ones(2),)) == ["x", "add", "add_2", "add_1"]


def test_N6_trap11_the_empty_name_is_the_model_output(extract):
    model = NestedScopes()
    (x,) = model.example()
    assert torch.equal(extract(model, "")(x)[""], model(x))


def test_N6_module_paths_are_accepted_and_not_listed(names_of, extract):
    names = names_of(NestedScopes())
    assert "stage" not in names
    extract(NestedScopes(), ["stage", "stage.0", "stage.1"])


def test_N7_trap13_the_names_of_torchvision_operators_are_scopes(names_of, extract):
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.mobilenet_v3_small().eval()
    names = names_of(model, example_args=(torch.randn(2, 3, 32, 32),))
    assert "features.1.block.0.1" in names
    extractor = extract(model, ["features.1.block.0", "features.1.block.0.1"])
    features = extractor(torch.randn(1, 3, 32, 32))
    assert features["features.1.block.0"].shape == features["features.1.block.0.1"].shape


def test_N8_names_do_not_depend_on_the_batch_or_on_the_request(names_of, extract):
    model = ZOO["Sizes"]()
    names = names_of(model)
    extract(model, ["flatten"])
    assert names_of(model) == names


def test_N2_a_submodule_that_cannot_be_traced_is_a_leaf_for_fx_alone(backend, names_of):
    names = names_of(DynamicInside())
    if backend != "fx":
        assert names[:2] == ["x", "first"]
        assert any(name.startswith("dynamic.") for name in names)
        return
    assert names == ["x", "first", "dynamic", "relu", "last"]
    assert list(names.auto_leaves) == ["dynamic"]
    assert "a branch depends on the value" in names.auto_leaves["dynamic"]


def test_M6_trap12_names_survive_an_extractor_of_an_extractor(names_of, extract):
    model = NestedScopes()
    extractor = extract(model, "")
    assert names_of(extractor) == names_of(model)
    (x,) = model.example()
    twice = extract(extractor, ["stage.0.lin", "stage.1.act"])
    assert torch.equal(twice(x)["stage.0.lin"], model.stage[0].lin(x))


def test_N9_M6_an_extractor_of_fx_has_the_same_names_on_both_backends(names_of, extract):
    model = NestedScopes()
    (x,) = model.example()
    inner = featuretap.create_feature_extractor(model, "", backend="fx")
    assert names_of(inner, example_args=(x,)) == featuretap.get_graph_node_names(model)
    found = extract(inner, ["mul", "stage.1.lin"])(x)
    assert identical(found, extract(model, ["mul", "stage.1.lin"])(x))


def test_N3_N9_operators_on_tensors_made_in_the_forward_are_named_as_they_are_written(
    names_of, extract
):
    class Made(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3, 4))

        def forward(self, x):
            z = torch.zeros(3, 4)
            z[:2] += x[1:]
            z -= x
            z[0].add_(x[1])
            table = self.table.clone()
            table[0] *= x[0]
            return (torch.ones(4) / x + z) * table

        def example(self):
            return (torch.ones(3, 4),)

    model, x = Made(), torch.arange(1.0, 13.0).reshape(3, 4)
    names = names_of(model)
    assert names == [
        *["x", "getitem", "add", "sub", "getitem_1", "getitem_2", "add_", "getitem_3", "mul"],
        *["truediv", "add_1", "mul_1"],
    ]
    features = extract(model, [*names, ""])(x)
    assert torch.equal(features["truediv"], 1 / x)
    z = -x.clone()
    z[:2] += x[1:]
    assert torch.equal(features["sub"], z)
    z[0] += x[1]
    assert torch.equal(features["add_1"], 1 / x + z)
    assert torch.equal(features[""], model(x))


def test_N7_N9_a_field_of_a_result_is_named_where_it_is_first_used(names_of, extract):
    def forward(self, x):
        values = x.sort(1).values
        indices = x.topk(2).indices
        least = torch.min(x, 1)
        best, where = x.max(1).values, least.indices
        return indices + 1, values * 2, where, best

    model, x = with_forward(forward), drawn(3, 4)
    expected = {
        "sort": x.sort(1),
        "topk": x.topk(2),
        "min": x.min(1),
        "max": x.max(1),
        "getattr": x.topk(2).indices,
        "add": x.topk(2).indices + 1,
        "getattr_1": x.sort(1).values,
        "mul": x.sort(1).values * 2,
        "getattr_2": x.min(1).indices,
        "getattr_3": x.max(1).values,
    }
    assert list(names_of(model, example_args=(x,))) == ["x", *expected]
    features = extract(model, list(expected), example_args=(x,))(x)
    for name, value in expected.items():
        kind = tuple if isinstance(value, tuple) else torch.Tensor
        assert isinstance(features[name], kind)
        assert all(map(torch.equal, features[name], value)), name


def test_M6_N3_an_extractor_of_fx_runs_operators_as_they_are_written(extract):
    class Operators(nn.Module):
        def forward(self, x):
            y = x * 2
            y += x
            y **= -1
            z = -y - -3 * y
            y -= z
            return x // 0.3 % y @ z.mT

        def example(self):
            return (torch.ones(3, 4),)

    model, x = Operators(), torch.rand(3, 4) + 1
    inner = featuretap.create_feature_extractor(
        model, ["add", "pow", "neg", "mul_1", "sub", "sub_1", "mod", "matmul"], backend="fx"
    )
    expected = inner(x)
    assert torch.equal(expected["matmul"], model(x))
    features = extract(inner, list(expected))(x)
    assert identical(dict(features), dict(expected))


@pytest.mark.parametrize("name", ZOO)
def test_M6_trap12_every_name_of_the_zoo_survives_an_extractor_of_a_pickled_extractor(
    names_of, extract, name
):
    model = ZOO[name]().eval()
    args = model.example()
    state = copied(model.state_dict())
    expected = {key: copied(value) for key, value in model.reference(*copied(args)).items() if key}
    model.load_state_dict(state)
    extractor = extract(model, [*expected, ""], suppress_diff_warning=True)
    extractor = copy.copy(extractor)
    names = names_of(model, suppress_diff_warning=True)
    left = names_of(extractor, suppress_diff_warning=True)
    assert left == [name for name in names if name in left]
    expected.pop("second", None)  # a second path is none of the extractor's
    twice = extract(extractor, list(expected), suppress_diff_warning=True)
    torch.manual_seed(0)
    features = twice(*copied(args))
    for key, value in expected.items():
        assert identical(features[key], value), key


class ReadsParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.inner(x), self.lin.weight, self.lin.bias)

    @staticmethod
    def example():
        return (torch.ones(2, 4),)


@pytest.mark.parametrize("kind", [*ZOO.values(), ReadsParameters], ids=lambda kind: kind.__name__)
def test_API_features_come_in_execution_order_whatever_was_asked_for_first(extract, names_of, kind):
    model = kind().eval()
    args = model.example()
    names = names_of(model, example_args=copied(args), suppress_diff_warning=True).eval
    extractor = extract(model, None, [""], [*reversed(names), ""], suppress_diff_warning=True)
    assert list(extractor(*copied(args))) == [*names, ""]


def test_API_a_parameter_comes_behind_the_module_that_ran_before_it_is_used(extract):
    features = extract(ReadsParameters(), ["lin.bias", "lin.weight", "inner", "inner.1", "linear"])
    order = ["inner.1", "inner", "lin.weight", "lin.bias", "linear"]
    assert list(features(torch.ones(2, 4))) == order


def test_N8_a_deeply_nested_model_has_all_its_nodes(names_of):
    model, x, limit = nn.Linear(2, 2), torch.ones(1, 2), sys.getrecursionlimit()
    for _ in range(125):
        model = nn.Sequential(model, nn.ReLU())
    model(x)
    assert len(names_of(model, example_args=(x,))) == 127
    assert sys.getrecursionlimit() == limit
