"""What the caller gives, and keeps: counters and caches that a forward goes on with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap_hooks as hooks
from support import identical, with_forward


class State:
    """As a cache for decoding is: without a tensor until the first call."""

    def __init__(self, **held):
        vars(self).update(held)


class Slotted:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n


def caches(self, x, state):
    state.k = x if state.k is None else torch.cat([state.k, x])
    return self.lin(state.k)


X = torch.ones(2, 3)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("request_", ["l*", {nn.Linear}, ["lin"]], ids=str)
def test_M5_looking_names_up_leaves_the_callers_objects_alone(request_, nested):
    model, state = with_forward(caches, lin=nn.Linear(3, 3)).eval(), State(k=None)
    if nested:
        model = with_forward(lambda self, x, held: self.inner(x, held[0]), inner=model).eval()
    request_ = ["inner.lin"] if nested and request_ == ["lin"] else request_
    request_ = "*l*n" if nested and request_ == "l*" else request_
    extractor = hooks.create_feature_extractor(model, request_)
    (value,) = extractor(X, [state] if nested else state).values()
    assert value.shape == (2, 3)
    assert identical(state.k, X)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_M5_N3_both_modes_of_an_example_begin_with_the_same_objects(mode):
    model, state = with_forward(caches, lin=nn.Linear(3, 3)).train(mode == "train"), State(k=None)
    names = hooks.get_graph_node_names(model, example_args=(X, state))
    assert names.train == names.eval == ["x", "state", "lin"]
    assert state.k is None
    hooks.create_feature_extractor(model, ["lin"], example_args=(X, state))
    assert state.k is None


def counts_in_an_object(self, x, kept):
    kept.n += x.shape[0]
    return (x + kept.n) + 1


def counts_in_a_list(self, x, kept):
    kept[0] += x.shape[0]
    return (x + kept[0]) + 1


def counts_in_a_dict(self, x, kept):
    kept["n"] = x.size(0) + kept["n"]
    return (x + kept["n"]) + 1


def counts_what_it_reads(self, x, kept):
    kept.n = kept.n + x.sum().item()
    return (x + kept.n) + 1


KEPT = {"n": 0}


def counts_in_a_global(self, x, kept):
    KEPT["n"] += x.shape[0]
    return (x + KEPT["n"]) + 1


def counts_in_a_default(self, x, kept, own=[0]):  # noqa: B006
    own[0] = x.shape[0] + own[0]
    return (x + own[0]) + 1


COUNTING = {
    counts_in_an_object: lambda: State(n=0),
    counts_in_a_list: lambda: [0],
    counts_in_a_dict: lambda: {"n": 0},
    counts_what_it_reads: lambda: Slotted(0.0),
    counts_in_a_global: lambda: None,
    counts_in_a_default: lambda: None,
}


@pytest.mark.parametrize("forward", COUNTING, ids=lambda forward: forward.__name__)
def test_V1_N4_a_number_that_was_put_away_shifts_no_name_of_the_next_call(forward):
    model, kept = with_forward(forward).eval(), COUNTING[forward]()
    names = list(hooks.get_graph_node_names(model, example_args=(X, kept)))
    KEPT["n"] = 0
    last = next(name for name in reversed(names) if "add" in name)
    extractor = hooks.create_feature_extractor(model, [last])
    for call in range(1, 4):
        step = 6.0 if forward is counts_what_it_reads else 2
        assert identical(extractor(X, kept)[last], X + call * step + 1)
    held = kept[0] if isinstance(kept, list) else kept["n"] if isinstance(kept, dict) else kept
    assert type(getattr(held, "n", held)) in (int, float, type(None))
