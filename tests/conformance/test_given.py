"""Rules N7, N9, V1, V4, E3: what a call is given: fixed arguments, one tensor twice, odd names, kinds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

import featuretap
from support import identical

X = torch.linspace(-1, 1, 6).view(2, 3)


class Scaled(nn.Module):
    def forward(self, x, n=2):
        return x * (n * 2)


class ByPlaceAlone(nn.Module):
    def forward(self, x, is_sine, /):
        return x.sin() if is_sine else x.cos()


@pytest.mark.parametrize("example", [None, (X,)])
def test_N9_what_is_computed_of_a_fixed_number_alone_is_no_node(extract, names_of, example):
    model, fixed = Scaled(), {"n": 3}
    assert names_of(model, concrete_args=fixed, example_args=(X,)) == ["x", "n", "mul"]
    extractor = extract(model, ["mul"], concrete_args=fixed, example_args=example)
    assert identical(extractor(X)["mul"], X * 6)


@pytest.mark.sees_operations
def test_V4_a_fixed_number_is_fixed_where_the_real_forward_is_watched_too(extract):
    model = Scaled()
    extractor = extract(model, ["mul"], concrete_args={"n": 3})
    assert featuretap.verify(extractor, model, X).equal


@pytest.mark.parametrize("example", [None, (X,)])
def test_N7_an_argument_that_has_no_keyword_can_be_fixed(extract, example):
    fixed = {"is_sine": True}
    extractor = extract(ByPlaceAlone(), ["sin"], concrete_args=fixed, example_args=example)
    assert identical(extractor(X)["sin"], X.sin())
    assert identical(extractor(X, True)["sin"], X.sin())


def slices(self, x, slice):  # noqa: A002
    return x[:, :slice].sin()


def looks_up(self, OrderedDict, getattr=1, _check_fixed=None):  # noqa: A002
    return OrderedDict.sin() * getattr


def test_V1_an_argument_may_be_called_like_what_a_graph_is_written_with(extract):
    sliced, looked_up = nn.Module(), nn.Module()
    sliced.forward = slices.__get__(sliced)
    looked_up.forward = looks_up.__get__(looked_up)
    setattr(looked_up, "0", nn.Parameter(torch.ones(2)))
    assert identical(extract(sliced, ["sin"])(X, 2)["sin"], X[:, :2].sin())
    assert identical(extract(looked_up, ["sin"])(X)["sin"], X.sin())


class AsksWhetherItIsOne(nn.Module):
    def forward(self, query, key):
        return query.sin() if query is key else query.cos() + key


@pytest.mark.sees_operations
@pytest.mark.only("hooks", why="to fx two arguments are two")
def test_V4_a_tensor_that_is_given_twice_is_so_in_the_copies_of_the_example(extract, names_of):
    model = AsksWhetherItIsOne()
    assert names_of(model, example_args=(X, X)) == ["query", "key", "sin"]
    for request, example in (("sin", (X, X)), ("s*", None)):
        extractor = extract(model, [request], example_args=example)
        assert identical(extractor(X, X)["sin"], X.sin())
        assert featuretap.verify(extractor, model, X, X).equal


class Pair(tuple):
    """Is made of two values, and has another one beside them."""

    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))

    def __init__(self, first, second):
        self.beside = first + 1


class TakesAPair(nn.Module):
    def forward(self, pair):
        return pair.beside * 2


@pytest.mark.only("hooks", why="fx does not take the class of an argument apart")
def test_V4_an_example_may_be_a_tuple_that_is_not_made_of_its_items(extract):
    model = TakesAPair()
    extractor = extract(model, [""], example_args=(Pair(X, X),))
    assert identical(extractor(Pair(X, X))[""], (X + 1) * 2)


def extends(self, x):
    values = x.flatten().tolist()
    values.extend(i * 1.0 for i in range(3))
    return x * len(values)


def adds(self, x):
    values = x.flatten().tolist()
    values += (i * 1.0 for i in range(3))
    return x * len(values)


def exchanges(self, x):
    values = x.flatten().tolist()
    values[:1] = (i * 1.0 for i in range(4))
    return x * len(values)


def sorts(self, x):
    asked = []
    values = x.flatten().tolist()
    values.sort(key=lambda value: asked.append(value) or -value)
    return x * len(asked) + values[0]


@pytest.mark.only("hooks", why="fx has no numbers at hand")
@pytest.mark.parametrize("forward", [extends, adds, exchanges, sorts])
def test_V1_a_list_of_numbers_is_filled_from_a_generator_once(extract, forward):
    model = nn.Module()
    model.forward = forward.__get__(model)
    assert identical(extract(model, [""], example_args=(X,))(X)[""], model(X))
    factor = 6 if forward is sorts else 9
    assert identical(extract(model, ["mul"])(X)["mul"], X * factor)


@dataclass
class Output(OrderedDict):
    """Like the outputs of transformers: a dict without what is ``None``."""

    first: torch.Tensor | None = None
    second: torch.Tensor | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value


class ReturnsOutput(nn.Module):
    def forward(self, x):
        return Output(first=x * 2)


def test_V1_an_output_that_is_a_dataclass_and_a_dict_comes_as_it_is(extract):
    output = extract(ReturnsOutput(), [""])(X)[""]
    assert type(output) is Output
    assert list(output) == ["first"]
    assert identical(output.first, X * 2)
    assert output.second is None


def test_E3_a_node_is_asked_for_under_one_key(extract):
    message = r"'0' is asked for twice, under the keys 'a' and 'b'; ask for each node once"
    with pytest.raises(ValueError, match=message):
        extract(nn.Sequential(nn.ReLU()), {"0": "a", "[0]": "b"}, example_args=(X,))


@pytest.mark.parametrize("wrong", [["fx"], None])
def test_E3_a_backend_is_named_by_a_string(wrong):
    with pytest.raises(TypeError, match="backend must be 'auto' or the name of a backend, not "):
        featuretap.get_graph_node_names(nn.ReLU(), backend=wrong)


class ReadsWhatAParameterKeeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.weight.factor, self.weight.table = 4.0, torch.full((3,), 2.0)

    def forward(self, x):
        return x * self.weight * self.weight.factor + self.weight.table


@pytest.mark.parametrize("example", [None, (X,)])
def test_N9_an_attribute_that_was_given_to_a_parameter_is_no_node(extract, names_of, example):
    model = ReadsWhatAParameterKeeps()
    names = ["x", "weight", "mul", "mul_1", "add"]
    assert names_of(model, example_args=(X,)) == names
    features = extract(model, names, example_args=example)(X)
    assert identical(features["mul_1"], X * 4)
    assert identical(features["add"], X * 4 + 2)


class PutsSizesTogether(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        return x.view([rows, columns] + [1] * (x.ndimension() - 1))


def test_N9_lists_of_sizes_that_are_put_together_are_a_node(extract, names_of):
    model = PutsSizesTogether()
    names = "x getattr getitem getitem_1 ndimension sub mul add view".split()
    assert names_of(model, example_args=(X,)) == names
    features = extract(model, ["mul", "add", "view"])(X)
    assert features["mul"] == [1]
    assert features["add"] == [2, 3, 1]
    assert identical(features["view"], X.view(2, 3, 1))
