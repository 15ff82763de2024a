"""Rules E and the forms of a request."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import featuretap
from zoo import ZOO, NestedScopes, ReusedModules, TrainEvalBranch


def test_E1_an_unknown_name_shows_the_nearest_and_how_to_list(extract, backend):
    with pytest.raises(featuretap.NodeNotFoundError) as caught:
        extract(NestedScopes(), "stage.0.lim")
    assert isinstance(caught.value, ValueError)
    assert caught.value.suggestions[0] == "stage.0.lin"
    listing = "model" if backend == "fx" else "model, example_args=..."
    assert str(caught.value) == (
        "'stage.0.lim' is no node of the model. Did you mean 'stage.0.lin' or "
        f"'stage.1.lin' or 'stage.0'? get_graph_node_names({listing}) lists all nodes; a module's path "
        "names what it returns"
    )


@pytest.mark.parametrize("name", ["stage.(", "d..*", "[", "stage.0.lin ", "STAGE"])
def test_E1_trap7_odd_names_are_unknown_names_and_nothing_worse(extract, name):
    with pytest.raises(featuretap.NodeNotFoundError, match="no node"):
        extract(NestedScopes(), name)


def test_E1_a_module_type_that_is_never_called(extract):
    with pytest.raises(featuretap.NodeNotFoundError, match="no module of type Conv2d is called"):
        extract(NestedScopes(), {nn.Conv2d})


class HoldsLists(nn.Module):
    """Holds modules in what is never called itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.heads = nn.ModuleDict({"a": nn.ReLU()})

    def forward(self, x):
        for layer in self.body:
            x = layer(x)
        return self.heads["a"](x)


@pytest.mark.parametrize(("name", "nearest"), [("body.2", "body.1"), ("heads", "heads.a")])
def test_E1_a_list_of_modules_is_never_called(extract, name, nearest):
    uncalled = ": the forward does not call this ModuleDict" if name == "heads" else ""
    expected = f"^'{name}' is no node of the model{uncalled}. Did you mean '{nearest}'"
    with pytest.raises(featuretap.NodeNotFoundError, match=expected):
        extract(HoldsLists(), name)
    with pytest.raises(featuretap.NodeNotFoundError, match="no module of type ModuleList is"):
        extract(HoldsLists(), {nn.ModuleList})


def test_E3_an_empty_request(extract):
    with pytest.raises(ValueError, match="return_nodes is empty"):
        extract(NestedScopes(), [])
    with pytest.raises(ValueError, match="nothing to extract"):
        extract(NestedScopes())


def test_E3_two_nodes_under_one_key(extract):
    with pytest.raises(
        ValueError, match=r"'same' is asked for twice: for 'stage.0.lin' and for 'mul'"
    ):
        extract(NestedScopes(), {"stage.0.lin": "same", "mul": "same"})


def test_E3_a_glob_with_several_matches_cannot_have_one_key(extract):
    with pytest.raises(ValueError, match=r"'stage.\*.lin' matches 2 nodes"):
        extract(NestedScopes(), {"stage.*.lin": "lin"})


@pytest.mark.parametrize("request_", [3, [3], {"mul": 3}, {"mul": None}, {3: "mul"}])
def test_E3_wrong_types_show_the_offending_entry(extract, request_):
    with pytest.raises(TypeError, match="3|None"):
        extract(NestedScopes(), request_)


class HasASpare(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x)


@pytest.mark.only("fx", why="hooks say so when it was not reached")
def test_E1_a_module_that_is_never_called_is_said_to_be_one(extract):
    with pytest.raises(featuretap.NodeNotFoundError) as caught:
        extract(HasASpare(), "spare")
    text = "'spare' is no node of the model: the forward does not call this Linear."
    assert str(caught.value).startswith(text)


@pytest.mark.only("fx", why="hooks look into every module")
def test_E1_what_is_inside_of_a_module_that_fx_cannot_look_into_says_why(extract):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(featuretap.NodeNotFoundError) as caught:
        extract(model, "0.0")
    assert str(caught.value) == (
        "'0.0' is no node of the model: it is inside of '0', which is one node because fx cannot look "
        "into it: Sequential has hooks, which must run with real tensors. Did you mean '0'? "
        "backend='hooks' looks into it"
    )


@pytest.mark.parametrize("request_", [nn.Linear(1, 1), [nn.Linear(1, 1)]])
def test_E3_a_module_is_shown_shortly_and_how_to_ask_for_it(extract, request_):
    with pytest.raises(
        TypeError, match=r"this Linear is a module, .* by its path, .* by \{Linear\}$"
    ):
        extract(NestedScopes(), request_)


def test_E3_a_number_is_no_name_of_a_layer(extract):
    with pytest.raises(TypeError, match="names are strings: '0'$"):
        extract(nn.Sequential(nn.Linear(4, 4)), [0])


def test_E3_an_argument_that_does_not_exist_cannot_be_fixed(extract, names_of):
    text = "concrete_args names 'y', which is no argument of the model's forward; it takes 'x'$"
    for ask in (names_of, lambda model, **given: extract(model, "lin", **given)):
        with pytest.raises(ValueError, match=text):
            ask(HasASpare(), concrete_args={"y": 1})


@pytest.mark.parametrize("request_", [[["mul"]], {int}, int, [nn.Linear(1, 1)], [{"a": "b"}]])
def test_E3_an_entry_that_is_no_name_and_no_module_type_is_shown(extract, request_):
    with pytest.raises(
        TypeError, match="is neither a node name nor a module type|which is neither"
    ):
        extract(NestedScopes(), request_)


def test_E1_a_node_of_the_other_mode_is_said_to_be_there(extract):
    model = TrainEvalBranch()
    with pytest.raises(
        featuretap.NodeNotFoundError, match="'inner.sub' is a node in eval mode only"
    ):
        extract(model, "inner.sub", example_args=model.example())


def test_E1_the_nearest_name_may_differ_in_case_or_have_a_prefix_less(extract):
    for asked in ("STAGE.0.LIN", "module.stage.0.lin"):
        with pytest.raises(featuretap.NodeNotFoundError, match=r"Did you mean 'stage\.0\.lin'"):
            extract(NestedScopes(), asked)


def test_E3_options_of_a_wrong_type_are_shown(extract):
    x = torch.ones(2, 4)
    with pytest.raises(TypeError, match=r"example_args must be a tuple.* not a Tensor"):
        extract(NestedScopes(), "mul", example_args=x)
    with pytest.raises(TypeError, match="example_kwargs must be a dict"):
        extract(NestedScopes(), "mul", example_kwargs=[x])
    with pytest.raises(TypeError, match="autowrap_modules takes Python modules, not 'math'"):
        extract(NestedScopes(), "mul", tracer_kwargs={"autowrap_modules": ["math"]})


def test_E_warnings_point_at_the_line_that_called(extract, names_of):
    model = TrainEvalBranch()
    with pytest.warns(UserWarning, match="in one mode only") as caught:
        names_of(model, suppress_diff_warning=False)
    # The fixture stands between this line and the package.
    assert caught[0].filename.endswith("conftest.py")


def test_E3_train_without_eval(extract):
    with pytest.raises(ValueError, match="eval_return_nodes is missing"):
        extract(NestedScopes(), train_return_nodes=["mul"])
    with pytest.raises(ValueError, match="return_nodes is for both modes"):
        extract(NestedScopes(), ["mul"], ["mul"], ["mul"])


def test_API_every_form_of_a_request(extract):
    model = NestedScopes()
    (x,) = model.example()
    lins = ["stage.0.lin", "stage.1.lin"]
    assert list(extract(model, lins)(x)) == lins
    assert list(extract(model, tuple(reversed(lins)))(x)) == lins
    assert list(extract(model, "stage.*.lin")(x)) == lins
    assert list(extract(model, "stage.[01].l?n")(x)) == lins
    assert list(extract(model, {nn.Linear})(x)) == lins
    assert list(extract(model, [nn.Linear, "mul"])(x)) == [*lins, "mul"]
    assert list(extract(model, {"mul": "b"})(x)) == ["b"]
    assert list(extract(model, "stage")(x)) == ["stage"]
    assert list(extract(model, "stage.?")(x)) == ["stage.0", "stage.1"]


def test_API_a_module_type_names_every_call(extract):
    model = ReusedModules()
    (x,) = model.example()
    assert list(extract(model, {nn.Tanh})(x)) == ["tanh", "tanh_1"]
    assert list(extract(model, {type(model.block)})(x)) == ["block", "block_1"]


def test_API_a_literal_name_wins_over_a_glob(extract):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("a*", nn.ReLU())
            self.add_module("ab", nn.Tanh())

        def forward(self, x):
            return self._modules["ab"](self._modules["a*"](x))

    assert list(extract(Odd(), "a*")(torch.ones(1))) == ["a*"]


def test_API_features_come_in_execution_order(extract):
    model = NestedScopes()
    features = extract(model, ["", "mul", "stage", "x"])(*model.example())
    assert list(features)[0] == "x"
    assert list(features).index("stage") < list(features).index("mul")


def test_API_modes_that_differ_are_listed_and_warned_about(names_of):
    with pytest.warns(
        UserWarning, match=r"only in train mode: inner.mul; only in eval mode: inner.sub"
    ):
        names = names_of(TrainEvalBranch())
    assert names == ["x", "add"]
    assert names.train == ["x", "inner.mul", "add"]
    assert names.eval == ["x", "inner.sub", "add"]


def test_API_trap10_no_warning_when_every_requested_node_is_in_both_modes(extract):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(TrainEvalBranch(), ["inner", "add"])


def test_API_trap10_a_name_that_means_two_operations_is_said_by_name(extract):
    class Noisy(nn.Module):
        def forward(self, x):
            if self.training:
                x = x + torch.rand(())
            return self.finish(x + 1)

        def finish(self, x):
            return x * 2

    with pytest.warns(
        UserWarning, match="'add' is one operation in train mode but another in eval"
    ):
        extract(Noisy(), "add", example_args=(torch.ones(2),))
    extract(Noisy(), "add", suppress_diff_warning=True, example_args=(torch.ones(2),))
    extract(Noisy(), "mul", example_args=(torch.ones(2),))


def test_API_each_mode_may_have_its_own_nodes(extract):
    model = TrainEvalBranch()
    extractor = extract(
        model, train_return_nodes=["inner.mul"], eval_return_nodes={"inner.sub": "s"}
    )
    (x,) = model.example()
    assert list(extractor(x)) == ["inner.mul"]
    assert list(extractor.eval()(x)) == ["s"]


def double(x):
    return 2 * x if float(x.sum()) > 0 else x


def test_API_trap14_autowrapped_functions_are_one_node_however_they_are_reached(names_of):
    import sys

    here = sys.modules[__name__]

    class Calls(nn.Module):
        def forward(self, x):
            from test_errors import double as local

            return double(x) + here.double(x) + local(x)

    names = names_of(Calls(), {"autowrap_functions": [double]}, example_args=(torch.ones(2),))
    assert names == ["x", "double", "double_1", "add", "double_2", "add_1"]


def test_API_trap29_the_callers_tracer_kwargs_are_not_touched(names_of):
    kwargs = {"leaf_modules": [nn.Sequential], "autowrap_modules": [math]}
    before = {key: list(value) for key, value in kwargs.items()}
    assert names_of(NestedScopes(), kwargs) == ["x", "stage", "mul"]
    assert kwargs == before


def test_API_leaf_modules_by_instance(names_of):
    model = NestedScopes()
    names = names_of(model, {"leaf_modules": [model.stage[1]]})
    assert names == ["x", "stage.0.lin", "stage.0.act", "stage.1", "mul"]


def test_API_unknown_tracer_kwargs_and_backends_are_named(names_of):
    with pytest.raises(TypeError, match="no 'leafs'; it takes 'leaf_modules'"):
        names_of(NestedScopes(), {"leafs": []})
    with pytest.raises(ValueError, match="no backend 'jax' here"):
        featuretap.get_graph_node_names(NestedScopes(), backend="jax")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, not int"):
        names_of(3)


@pytest.mark.only("fx", why="the real forward runs in both modes")
def test_API_trap39_a_model_that_works_in_one_mode_only(names_of, extract):
    class OnlyEval(nn.Module):
        def forward(self, x):
            if self.training and x.sum() > 0:
                return x
            return x + 1

    model = OnlyEval()
    with pytest.warns(UserWarning, match="in train mode it cannot"):
        names = names_of(model)
    assert names == ["x", "add"]
    extractor = extract(model.eval(), "add")
    assert list(extractor(torch.ones(1))) == ["add"]
    with pytest.raises(ValueError, match="no train mode"):
        extractor.train()(torch.ones(1))


def test_E2_an_output_that_nobody_can_look_into_is_refused_by_fx_and_its_inside_served(
    backend, extract
):
    class Box:
        def __init__(self, value):
            self.value = value

    class Boxes(nn.Module):
        def forward(self, x):
            return Box(x + 1)

    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="returns a Box"):
            extract(Boxes(), "")
    else:
        assert extract(Boxes(), "")(torch.ones(1))[""].value == 2
    assert list(extract(Boxes(), "add")(torch.ones(1))) == ["add"]


@pytest.mark.parametrize("name", ZOO)
def test_API_return_nodes_tell_what_was_asked(extract, name):
    model = ZOO[name]()
    assert extract(model, {"": "output"}, suppress_diff_warning=True).return_nodes == {"": "output"}
