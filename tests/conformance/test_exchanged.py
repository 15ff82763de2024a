"""Rules M1, M4, C4: parameters exchanged later, names that an extractor has itself, other corners."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn

from support import identical
from zoo import linear

X = torch.ones(2, 4)


class Scales(nn.Module):
    """Reads parameters and a buffer of its own, at the root and inside."""

    def __init__(self, inside=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.ones(4))
        self.lin, self.inside = linear(1), inside

    def forward(self, x):
        x = x if self.inside is None else self.inside(x)
        return self.lin(x * self.scale) + self.shift


def assigned(model):
    model.load_state_dict({k: v * 3 for k, v in model.state_dict().items()}, assign=True)


def set_anew(model):
    model.scale = nn.Parameter(model.scale.detach() * 5)
    model.inside.scale = nn.Parameter(model.inside.scale.detach() * 7)


@pytest.mark.parametrize("exchange", [assigned, set_anew])
def test_M1_a_parameter_that_the_model_was_given_later_is_the_extractors(extract, exchange):
    if exchange is assigned and "assign" not in nn.Module.load_state_dict.__code__.co_varnames:
        pytest.skip("load_state_dict assigns since torch 2.1")
    model = Scales(Scales()).eval()
    extractor = extract(model, ["mul", "inside.mul", ""])
    extractor(X)
    other = copy.deepcopy(extractor)
    exchange(model)
    expected = model(X)
    assert identical(extractor(X)[""], expected)
    assert identical(extractor(X)["mul"], model.inside(X) * model.scale)
    assert not identical(other(X)[""], expected)


def parametrized(model):
    nn.utils.parametrize.register_parametrization(model, "scale", nn.Softplus())


def replaced(model):
    del model.scale
    model.scale = torch.ones(4) * 4


@pytest.mark.parametrize("change", [parametrized, replaced])
def test_M1_what_is_no_parameter_any_more_is_an_error_or_the_models(extract, backend, change):
    model = Scales().eval()
    extractor = extract(model, ["mul", ""])
    extractor(X)
    change(model)
    if backend == "fx":
        with pytest.raises(RuntimeError, match="'scale' of .*Scales is no parameter any more"):
            extractor(X)
    else:
        assert identical(extractor(X)[""], model(X))


def exchanges_the_layer(model, layer):
    setattr(model, "1", layer)


def removes_the_parametrization(model, layer):
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")


@pytest.mark.parametrize("change", [exchanges_the_layer, removes_the_parametrization])
@pytest.mark.parametrize("called", [False, True])
def test_M1_a_layer_may_lose_its_parametrization(backend, extract, change, called):
    """The power iteration of spectral norm has buffers, which are gone then."""

    def make():
        torch.manual_seed(0)
        inner = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        return nn.Sequential(nn.Linear(4, 4), inner, nn.ReLU())

    model, other = make(), make()
    extractor = extract(model, "")
    if called:
        assert identical(extractor(X)[""], other(X))
    layer = nn.Linear(4, 4)
    change(extractor if change is exchanges_the_layer and backend == "fx" else model, layer)
    change(other, layer)
    assert identical(extractor(X)[""], other(X))


def test_M1_a_parameter_of_the_extractors_own_stays(extract, backend):
    model = Scales().eval()
    extractor = extract(model, ["mul"])
    own = {"scale": torch.full((4,), 9.0)}
    features = torch.func.functional_call(extractor, own, (X,))
    assert identical(features["mul"], X * 9)
    assert identical(extractor(X)["mul"], X)


@pytest.mark.parametrize("name", ["graph", "meta", "return_nodes", "followed", "_parts", "code"])
def test_M1_a_buffer_may_be_called_like_something_of_an_extractor(extract, name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer(name, torch.full((4,), 3.0))

        def forward(self, x):
            return x * getattr(self, name)

    assert identical(extract(Named().eval(), "mul")(X)["mul"], X * 3)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lin = linear(1)

    def forward(self, x):
        return self.lin(self.attention(x, x, x)[0])


@pytest.mark.parametrize("example", [(), (torch.ones(1, 2, 4),)])
def test_C4_a_type_may_have_modules_that_are_never_called(extract, example):
    extractor = extract(Attends().eval(), {nn.Linear}, example_args=example or None)
    assert list(extractor(torch.ones(1, 2, 4))) == ["lin"]


class TakesABranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
        return self.lin(y) + 1


@pytest.mark.only("hooks", why="torch.fx does not record torch.cond")
def test_N1_control_flow_of_torch_is_one_node(names_of, extract):
    model = TakesABranch().eval()
    names = names_of(model, example_args=(X,))
    assert names.eval == ["x", "sum", "gt", "cond", "lin", "add"]
    for x in (X, -X):
        features = extract(model, ["cond", "add"])(x)
        assert identical(features["cond"], torch.sin(x) if x is X else torch.cos(x))
        assert identical(features["add"], model(x))


class BranchesIntoALayer(nn.Module):
    """Calls a layer in a branch, which torch compiles on the spot."""

    def __init__(self):
        super().__init__()
        self.lin, self.head = linear(1), linear(2)

    def forward(self, x):
        y = torch.cond(x.sum() > 0, lambda t: self.lin(t) * 2, lambda t: self.lin(t) - 1, (x,))
        return self.head(y * 3) + 1


@pytest.mark.only("hooks", why="torch.fx does not record torch.cond")
def test_N1_layers_inside_control_flow_of_torch_are_not_watched(names_of, extract):
    model = BranchesIntoALayer().eval()
    assert names_of(model, example_args=(X,))[-4:] == ["cond", "mul", "head", "add"]
    for x in (X, -X):
        expected = model.lin(x) * 2 if x is X else model.lin(x) - 1
        features = extract(model, ["cond", "head", ""])(x)
        assert torch.allclose(features["cond"], expected)
        assert identical(features[""], model(x))
    assert not any("forward" in vars(module) for module in model.modules())


class AttendsFlexibly(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        from torch.nn.attention.flex_attention import flex_attention

        y = self.lin(x)[:, None]
        return self.head(flex_attention(y, y, y)[:, 0])


@pytest.mark.only("hooks", why="torch.fx does not record flex_attention")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_N1_flex_attention_which_compiles_itself_is_one_node(names_of, extract, on_the_cpu):
    model, x = AttendsFlexibly().eval().requires_grad_(False), torch.randn(2, 128, 16)
    pytest.importorskip("torch.nn.attention.flex_attention", reason="since torch 2.5")
    names = names_of(model, example_args=(x,))
    assert names == ["x", "lin", "getitem", "flex_attention", "getitem_1", "head"]
    assert identical(extract(model, ["getitem", "head"])(x)["head"], model(x))


class ReturnsADict(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.norm = linear(1), nn.BatchNorm1d(4)

    def forward(self, x):
        return {"a": self.norm(self.lin(x))}


@pytest.mark.skipif(
    not hasattr(torch, "compiler"), reason="dynamo makes an OrderedDict: since torch 2.1"
)
def test_M4_compile_with_fullgraph_where_the_output_is_a_dict(extract):
    model = ReturnsADict().eval()
    compiled = torch.compile(extract(model, ""), fullgraph=True, backend="eager")
    assert identical(compiled(X)[""], model(X))


@pytest.mark.parametrize("register", ["full_backward_hook", "full_backward_pre_hook"])
def test_V3_backward_hooks_act_on_the_feature_of_their_module(extract, register):
    model = nn.Sequential(linear(1), linear(2))

    def triple(_module, *gradients):
        return (gradients[0][0] * 3,)

    getattr(model[1], f"register_{register}")(triple)
    (expected,) = torch.autograd.grad(model(X).sum(), model[0].weight)
    extractor = extract(model, ["1"])
    for _ in range(2):
        (gradient,) = torch.autograd.grad(extractor(X)["1"].sum(), model[0].weight)
        assert identical(gradient, expected)


@pytest.mark.only("hooks", "fx refuses a forward that sets attributes and reads them")
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_N2_what_gets_the_place_of_a_tensor_that_was_given_up_is_a_value_of_its_own(
    extract, early_stop
):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            # Sets another tensor in each call, where the one of the call before may have been.
            self.inner = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))

        def forward(self, x):
            y = self.inner(x).cos()
            return (y + x).cos()

    for example in (None, (X,)) * 5:
        model = Outer()
        extractor = extract(model, ["cos"], example_args=example, early_stop=early_stop)
        for number in range(4):
            assert identical(extractor(X * number)["cos"], model.inner(X * number).cos())


class _KeepsItsTable(nn.Module):
    """Has a table that stays in float32 whatever the module is converted to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 4))

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        self.table = torch.linspace(0, 1, 4)
        return self

    def forward(self, x):
        return x * self.table


@pytest.mark.parametrize("inside", [False, True])
def test_M2_a_module_that_converts_itself_does_so_in_the_extractor(extract, inside):
    torch.manual_seed(0)
    keeper = _KeepsItsTable()
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(keeper) if inside else keeper).eval()
    extractor = extract(copy.deepcopy(model), "")
    x = torch.rand(2, 4).to(torch.bfloat16)
    expected = model.to(torch.bfloat16)(x)
    assert identical(extractor.to(torch.bfloat16)(x)[""], expected)
    assert identical(copy.deepcopy(extractor).to(torch.bfloat16)(x)[""], expected)


class _ConvertsAllItself(_KeepsItsTable):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x) * self.table


def test_M2_a_model_that_converts_itself_does_so_or_the_extractor_says_that_it_cannot(
    extract, backend
):
    model, x = _ConvertsAllItself().eval(), torch.rand(2, 4).to(torch.bfloat16)
    extractor, again = (extract(copy.deepcopy(model), "") for _ in range(2))
    extractor = copy.deepcopy(extractor)
    if backend == "fx":
        for each in (extractor, nn.Sequential(extractor)):
            with pytest.raises(RuntimeError, match="_ConvertsAllItself converts itself.*'hooks'"):
                each.to(torch.bfloat16)
        assert again.lin.weight.dtype == torch.float32
        extractor = extract(model.to(torch.bfloat16), "")
    else:
        assert extractor.to(torch.bfloat16) is extractor
        assert nn.Sequential(again).to(torch.bfloat16)[0] is again
        model.to(torch.bfloat16)
    assert extractor.table.dtype == torch.float32
    assert identical(extractor(x)[""], model(x))
