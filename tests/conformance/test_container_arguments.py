"""Rules N1, N9, V2: arguments that are dicts, lists or tuples of tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree

from support import drawn, identical, with_forward


def reads_a_dict(self, batch):
    return batch["x"][0] * 2 + batch["more"]["y"]


def reads_a_list(self, batch):
    x, y = batch
    return x[0] * 2 + batch[-1][1] + y


def reads_a_tuple(self, batch):
    return batch[1][0] + batch[0]


def reads_with_get(self, batch):
    return batch.get("x").relu() + batch["x"][0]


READING = [
    (reads_a_dict, lambda x, y: {"x": x, "more": {"y": y}}),
    (reads_a_list, lambda x, y: [x, y]),
    (reads_a_tuple, lambda x, y: (x, y)),
    (reads_with_get, lambda x, y: {"x": x, "y": y}),
]


@pytest.mark.parametrize(("forward", "make"), READING, ids=lambda v: getattr(v, "__name__", ""))
def test_N9_an_item_of_an_argument_is_a_node_of_both_backends(extract, names_of, forward, make):
    model, batch = with_forward(forward), make(drawn(3, 4), drawn(3, 4, seed=1))
    expected = {
        reads_a_dict: ["getitem", "getitem_1", "mul", "getitem_2", "getitem_3", "add"],
        reads_a_list: "getitem getitem_1 getitem_2 mul getitem_3 getitem_4 add add_1".split(),
        reads_a_tuple: ["getitem", "getitem_1", "getitem_2", "add"],
        reads_with_get: ["get", "relu", "getitem", "getitem_1", "add"],
    }[forward]
    names = list(names_of(model, example_args=(batch,)))
    assert names == ["batch", *expected]
    features = extract(model, [*names, ""], example_args=(batch,))(batch)
    assert identical(features[""], model(batch))
    first = batch["x"] if isinstance(batch, dict) else batch[1 if forward is reads_a_tuple else 0]
    assert identical(features[expected[0]], first)


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
    extractor = extract(model, ["getitem", ""])
    for _ in range(3):
        mine, theirs = make(x, y), make(x, y)
        features, expected = extractor(mine), model(theirs)
        assert identical(features[""], expected)
        assert identical(features["getitem"], x)
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
