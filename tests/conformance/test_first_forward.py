"""Rules M5, V2, E2: what a first forward makes, or moves far inside, is not left by listing and making."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from torch import nn

import featuretap
from support import drawn, identical, snapshot
from zoo import linear


class Slotted:
    """Keeps what it needs in slots."""

    __slots__ = ("__hidden", "total", "trace")

    def __init__(self):
        self.__hidden, self.total, self.trace = 0, torch.zeros(4), [0, {"calls": 0}]

    def count(self):
        self.__hidden += 1
        return self.__hidden


class Both(Slotted):
    """Has slots, and a dict as well."""


def nested(depth):
    inner = {"calls": 0, "total": torch.zeros(4), "log": [0]}
    for _ in range(depth):
        inner = {"inside": inner}
    return inner


def innermost(kept):
    while "inside" in kept:
        kept = kept["inside"]
    return kept


class Net(nn.Module):
    """Each test gives it a forward, and something to keep."""

    def __init__(self, function, kept):
        super().__init__()
        self.lin, self.act = linear(1), nn.ReLU()
        self.function, self.kept = function, kept

    def forward(self, x):
        return self.function(self, self.act(self.lin(x)))


def registers_a_buffer_of_a_size(self, y):
    if not hasattr(self, "table"):
        self.register_buffer("table", torch.ones(1, y.shape[-1]) * 2)
    return y * self.table


def registers_a_random_buffer_in_its_child(self, y):
    if not hasattr(self.act, "table"):
        self.act.register_buffer("table", torch.rand(4))
    return y * self.act.table


def registers_a_parameter_in_its_child(self, y):
    if not hasattr(self.act, "scale"):
        self.act.scale = nn.Parameter(torch.rand(4))
    return y * self.act.scale


def makes_a_module_in_its_child(self, y):
    if not hasattr(self.act, "late"):
        self.act.late = nn.Linear(4, 4)
    return self.act.late(y)


def counts_deep_inside(self, y):
    kept = innermost(self.kept)
    kept["calls"] += 1
    return y * kept["calls"]


def writes_a_tensor_deep_inside(self, y):
    kept = innermost(self.kept)
    kept["total"] += 1
    return y * kept["total"]


def fills_a_list_deep_inside(self, y):
    kept = innermost(self.kept)
    kept["log"].append(1)
    return y * len(kept["log"])


def counts_in_a_hidden_slot(self, y):
    return y * self.kept.count()


def writes_a_tensor_in_a_slot(self, y):
    self.kept.total += 1
    return y * self.kept.total


def counts_inside_of_a_slot(self, y):
    self.kept.trace[1]["calls"] += 1
    return y * self.kept.trace[1]["calls"]


def draws(self, y):
    return y * next(self.kept)


CASES = [
    (registers_a_buffer_of_a_size, lambda: None),
    (registers_a_random_buffer_in_its_child, lambda: None),
    (registers_a_parameter_in_its_child, lambda: None),
    (makes_a_module_in_its_child, lambda: None),
    *(
        (function, lambda depth=depth: nested(depth))
        for function in (counts_deep_inside, writes_a_tensor_deep_inside, fills_a_list_deep_inside)
        for depth in (3, 4, 6)
    ),
    *(
        (function, kind)
        for function in (
            counts_in_a_hidden_slot,
            writes_a_tensor_in_a_slot,
            counts_inside_of_a_slot,
        )
        for kind in (Slotted, Both)
    ),
    (draws, lambda: itertools.cycle([1.0, 2.0, 3.0])),
    (draws, lambda: itertools.chain([1.0], itertools.count(2.0))),
]


@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize(("function", "make"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_M5_V2_the_first_forward_is_that_of_the_user(backend, function, make, example):
    model, plain = Net(function, make()).eval(), Net(function, make()).eval()
    plain.load_state_dict(model.state_dict())
    x = drawn(3, 4)
    given = {"backend": backend, "example_args": (x,) if example else None}
    # An iterator that was used is another one, which yields the same.
    before = [] if function is draws else snapshot(model)
    called = model
    with contextlib.suppress(featuretap.UntraceableModelError):
        featuretap.get_graph_node_names(model, **given)
    assert not before or snapshot(model) == before
    with contextlib.suppress(featuretap.UntraceableModelError):
        extractor = featuretap.create_feature_extractor(model, [""], **given)
        called = lambda x: extractor(x)[""]
    assert not before or snapshot(model) == before
    for _ in range(4):
        torch.manual_seed(0)
        real = plain(x)
        torch.manual_seed(0)
        assert identical(called(x), real)
