"""Rules N1, N9, V2: arguments that are dicts, lists or tuples of tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy
import pytest
import torch
from torch import nn
from torch.utils import _pytree

from featuretap import UntraceableModelError
from support import drawn, here, identical, with_forward


def test_N9_an_item_of_a_tuple_is_a_node_of_both_backends(extract, names_of):
    def forward(self, batch):
        return batch[1][0] + batch[0]

    model, batch = with_forward(forward), (drawn(3, 4), drawn(3, 4, seed=1))
    names = ["batch", "getitem", "getitem_1", "getitem_2", "add"]
    assert list(names_of(model, example_args=(batch,))) == names
    features = extract(model, [*names, ""], example_args=(batch,))(batch)
    assert identical(features[""], model(batch))
    assert identical(features["getitem"], batch[1])


class Both(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


class Several(tuple):
    """A class of the user's own."""


@pytest.mark.parametrize("kind", [lambda *items: Both(*items), lambda *items: Several(items)])
def test_N9_an_item_of_any_tuple_is_a_node_of_both_backends(extract, names_of, kind):
    def forward(self, batch):
        y = batch[0] + batch[1]
        return y[0] * 2

    model, batch = with_forward(forward), kind(drawn(3, 4), drawn(3, 4, seed=1))
    names = ["batch", "getitem", "getitem_1", "add", "getitem_2", "mul"]
    assert list(names_of(model, example_args=(batch,))) == names
    features = extract(model, names, example_args=(batch,))(batch)
    assert identical(features["getitem"], batch[0])
    assert identical(features["mul"], model(batch))


def test_N9_a_field_of_a_named_tuple_is_a_node_of_both_backends(extract, names_of):
    def forward(self, batch):
        return (batch.one + batch.two).T * 2

    model, batch = with_forward(forward), Both(drawn(3, 4), drawn(3, 4, seed=1))
    names = ["batch", "getattr", "getattr_1", "add", "getattr_2", "mul"]
    assert list(names_of(model, example_args=(batch,))) == names
    assert identical(extract(model, "getattr", example_args=(batch,))(batch)["getattr"], batch.one)


def doubled(value):
    if type(value) in (dict,):
        return type(value)({key: doubled(item) for key, item in value.items()})
    if type(value) in (list, tuple) or isinstance(value, tuple):
        return type(value)(doubled(item) for item in value)
    return value * 2


@pytest.mark.only("hooks", why="to fx an argument is a tensor, if no example shows another thing")
@pytest.mark.parametrize(
    "make", [lambda x, y: {"x": x, "y": [y]}, lambda x, y: [x, (y, y)], lambda x, y: ((x, y), [y])]
)
def test_V1_containers_are_made_again_by_their_own_type(extract, make):
    def forward(self, batch):
        leaves = _pytree.tree_leaves(doubled(batch))
        return doubled(leaves[0].split(1))[0] + leaves[1]

    model, batch = with_forward(forward), make(drawn(3, 4), drawn(3, 4, seed=1))
    extractor = extract(model, ["split", "add", ""])
    for _ in range(3):
        features = extractor(batch)
        assert identical(features[""], model(batch))
        assert identical(features["add"], features[""])


def changes_a_dict(self, batch):
    batch["z"] = batch["x"] + 1
    batch.update(w=batch["z"] * 2)
    batch.pop("y")
    batch.setdefault("v", batch["w"] - 1)
    return batch["w"] + batch["x"]


def changes_a_list(self, batch):
    batch.append(batch[0] + 1)
    batch[1] = batch[2] * 2
    batch.append(batch[1] - 1)
    batch.insert(0, batch.pop())
    batch.reverse()
    return batch[0] + batch[1]


def extends_a_list(self, batch):
    batch += [batch[0] * 2]
    del batch[1]
    batch *= 2
    return batch[-1] + batch[0]


CHANGING = [
    (changes_a_dict, lambda x, y: {"x": x, "y": y}),
    (changes_a_list, lambda x, y: [x, y]),
]


@pytest.mark.parametrize(("forward", "make"), CHANGING, ids=lambda v: getattr(v, "__name__", ""))
def test_V2_what_a_forward_changes_in_an_argument_is_changed_for_the_caller(extract, forward, make):
    check_changes(extract, forward, make)


@pytest.mark.only("hooks", why="to fx this is arithmetic of tensors")
def test_V2_operators_that_change_a_list_change_it_for_the_caller(extract):
    check_changes(extract, extends_a_list, lambda x, y: [x, y])


def check_changes(extract, forward, make):
    model = with_forward(forward)
    x, y = drawn(3, 4), drawn(3, 4, seed=1)
    extractor = extract(model, ["add", ""])
    for _ in range(3):
        mine, theirs = make(x, y), make(x, y)
        features, expected = extractor(mine), model(theirs)
        assert identical(features[""], expected)
        assert identical(mine, theirs)
        assert type(mine) is type(theirs)


@pytest.mark.only(
    "hooks", why="fx takes arguments to be tensors, and example inputs show the difference"
)
@pytest.mark.parametrize(
    "make", [lambda x, y: (x, y), lambda x, y: [x, y], lambda x, y: {0: x, 1: y}]
)
def test_V1_tree_map_goes_through_arguments_and_results(extract, make):
    def forward(self, batch):
        both = _pytree.tree_map(lambda t: t * 2, batch)
        parts = _pytree.tree_map(torch.neg, both[0].split(1))
        return parts[0] + both[1]

    model, batch = with_forward(forward), make(drawn(3, 4), drawn(3, 4, seed=1))
    extractor = extract(model, ["split", "add", ""])
    for _ in range(3):
        features = extractor(batch)
        assert identical(features[""], model(batch))
        assert identical(features["split"], (batch[0] * 2).split(1))


def of_a_named_tuple(self, x):
    both = _pytree.tree_map(lambda t: t * 2, x.sort(1))
    return both[0] + both[1]


def of_parts(self, x):
    return _pytree.tree_map(lambda t: t[-1], x.split(2))[0]


def of_a_size(self, x):
    return x * len(_pytree.tree_flatten(x.shape)[0])


def of_a_layer(self, x):
    return sum(t.sum() for t in _pytree.tree_flatten(self.own(x))[0])


TREES = [of_a_named_tuple, of_parts, of_a_size, of_a_layer]


@pytest.mark.parametrize("function", TREES, ids=lambda function: function.__name__)
def test_V2_fx_refuses_to_go_through_a_result_that_may_be_a_container(backend, extract, function):
    model, x = with_forward(function, own=nn.GRU(4, 4)).to(here()), drawn(3, 4)
    if backend == "fx":
        with pytest.raises(UntraceableModelError, match="what kind of object|a loop, or unpacking"):
            extract(model, "")
    else:
        assert identical(extract(model, "")(x)[""], model(x))


@pytest.mark.only("hooks", why="fx refuses NumPy")
@pytest.mark.parametrize("request_", ["lin*", {nn.Linear}, ["lin"]])
@pytest.mark.parametrize("example", [False, True])
def test_M5_an_array_that_a_forward_writes_is_written_by_calls_alone(extract, request_, example):
    def forward(self, given):
        given += 1
        return self.lin(torch.from_numpy(given).to(self.lin.weight))

    model = with_forward(forward)
    model.lin = nn.Linear(4, 4)
    given = numpy.ones(4, dtype=numpy.float32)
    options = {"example_args": (given,)} if example else {}
    extractor = extract(model, request_, **options)
    assert given.tolist() == [1.0] * 4
    feature = extractor(given)["lin"]
    assert given.tolist() == [2.0] * 4
    assert identical(feature, model.lin(torch.full((4,), 2.0)))
