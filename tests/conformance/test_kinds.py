"""Rules V2, E2: what a forward asks about the kind of a value is answered as for the real one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn
from torch.utils import _pytree

import featuretap
from support import identical, with_forward

FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")
X = torch.ones(2, 4)

is_one = isinstance


class Net(nn.Module):
    """Each test gives it another forward."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.ones(4))


@functools.singledispatch
def dispatched(x):
    return x


@dispatched.register
def _(x: torch.Tensor):
    return x * 3


def dispatches(self, x):
    return dispatched(self.lin(x)) + 0


def maps_over_a_tree(self, x):
    return _pytree.tree_map_only(torch.Tensor, lambda y: y * 3, {"a": self.lin(x)})["a"]


def matches(self, x):
    match self.lin(x):
        case torch.Tensor() as y:
            return y * 3
    return x


def asks_by_another_name(self, x):
    return x * 3 if is_one(x, torch.Tensor) else x + 1


def asks_for_the_class_of_what_is_called(self, x):
    return x + 1 if isinstance(self.lin(x), Callable) else x * 3


def asks_for_the_type(self, x):
    return x * 3 if type(self.lin(x)) is torch.Tensor else x + 1


def asks_for_the_class(self, x):
    return x * 3 if x.__class__ is torch.Tensor else x + 1


def asks_whether_a_type_is_one(self, x):
    return x * 3 if isinstance(type(x), type) and issubclass(type(x), torch.Tensor) else x + 1


def asks_for_an_abstract_class(self, x):
    return x * 3 if isinstance(self.lin(x), Iterable) else x + 1


def makes_a_metaclass(self, x):
    class Meta(type):
        def __new__(cls, name, bases, held):
            return super().__new__(cls, name, bases, {**held, "factor": 3})

        def __call__(cls):
            return 4

    class Made(metaclass=Meta):
        pass

    return self.lin(x) * Made.factor * Made() * (5 if type(Made) is Meta else 7)


def makes_a_class(self, x):
    made = type("Made", (int,), {})
    is_made = type(made) is type and isinstance(made, type) and type.mro(made)[1] is int
    return self.lin(x) * (2 if is_made and {type: 1}[type(int)] == 1 else 3) * len(repr(type))


def asks_whether_it_is_callable(self, x):
    return x + 1 if callable(x * 2) else x * 3


def asks_for_a_parameter(self, x):
    is_parameter = isinstance(self.weight, nn.Parameter)
    return x * 3 if is_parameter and not isinstance(x, nn.Parameter) else x + 1


def tries_an_attribute(x):
    try:
        return x.no_such_attribute
    except AttributeError:
        return x * 3


def tries_in_a_function(self, x):
    return tries_an_attribute(self.lin(x)) + 0


ANSWERED = [
    dispatches,
    maps_over_a_tree,
    matches,
    asks_by_another_name,
    asks_for_the_type,
    asks_for_the_class_of_what_is_called,
    asks_for_the_class,
    asks_whether_a_type_is_one,
    asks_for_an_abstract_class,
    makes_a_metaclass,
    makes_a_class,
    asks_whether_it_is_callable,
    asks_for_a_parameter,
    tries_in_a_function,
]


def net(function):
    torch.manual_seed(0)
    return type("Asks", (Net,), {"forward": function})().eval()


@pytest.mark.parametrize("function", ANSWERED)
def test_V2_the_kind_of_a_value_is_that_of_the_real_one(extract, function):
    model = net(function)
    assert torch.equal(extract(model, "")(X)[""], model(X))
    assert not {"type", "callable"} & globals().keys()


def asks_for_a_legacy_type(self, x):
    return x * 3 if isinstance(x, torch.FloatTensor) else x + 1


def matches_items(self, x):
    match x.max(1):
        case (values, _):
            return x * values.sum()
    return x + 1


LEGACY = (int, torch.LongTensor)


def asks_for_one_of_several(self, x):
    return x * 3 if isinstance(x, LEGACY) else x + 1


def asks_for_a_flag(self, x):
    return x * 3 if getattr(x, "is_nested", None) is False else x + 1


REFUSED = [
    (asks_for_a_legacy_type, "asks for a type such as torch.FloatTensor"),
    (asks_for_one_of_several, "asks for a type such as torch.FloatTensor"),
    (matches_items, "matches a pattern of items"),
    (asks_for_a_flag, r"compares \.is_nested of a value with 'is'"),
]


@FX_ONLY
@pytest.mark.parametrize(("function", "reason"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_E2_a_question_that_no_stand_in_can_answer_is_refused(extract, function, reason):
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        extract(net(function), "")


@pytest.mark.parametrize("function", [function for function, _ in REFUSED])
def test_V2_asked_inside_a_submodule_it_is_the_real_value(extract, function):
    model = nn.Sequential(net(function), nn.ReLU()).eval()
    assert torch.equal(extract(model, "1")(X)["1"], model(X))


class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b


class Reads(nn.Module):
    def forward(self, x):
        return Pair(x + 1, x * 2) if x.sum() < 1e9 else Pair(x, x)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x if (x + 0).sum() > -1e9 else -x)


class PassesAnAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.reads, self.branches = Reads(), Branches()

    def forward(self, x):
        return self.branches(self.reads(x).b)


def test_E2_an_attribute_outlives_a_module_that_could_not_use_it(extract):
    model = PassesAnAttribute().eval()
    features = extract(model, ["branches", ""])(X)
    assert torch.equal(features["branches"], model(X))
    assert torch.equal(features[""], model(X))


class Tagged(torch.Tensor):
    """A tensor of the user's own, with an attribute."""

    tag = "none"


class OverwritesTheNorm(Net):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(x) - 1)


def test_V1_a_copied_feature_is_of_the_class_of_the_value(extract):
    extractor = extract(OverwritesTheNorm().eval(), ["norm", "sub", "act"])
    given = X.as_subclass(Tagged)
    for _ in range(2):
        features = extractor(given)
        assert {type(value) for value in features.values()} == {Tagged}
        assert (features["sub"] < 0).any()


def test_N9_a_change_of_class_is_a_node_and_hides_none(extract, names_of):
    def forward(self, x):
        first = x.as_subclass(Tagged) * 2
        return first.as_subclass(torch.Tensor) + self.layer(x) * 3

    model = with_forward(forward, layer=nn.Linear(4, 4))
    names = list(names_of(model, example_args=(X,)))
    assert names == ["x", "as_subclass", "mul", "as_subclass_1", "layer", "mul_1", "add"]
    features = extract(model, ["mul", "mul_1", "as_subclass_1"])(X)
    assert type(features["mul"]) is Tagged
    assert identical(features["mul_1"], model.layer(X) * 3)
    assert identical(features["as_subclass_1"], X * 2)
    assert "as_subclass" not in vars(torch.Tensor)
