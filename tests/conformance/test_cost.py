"""Rules C: cost, as far as it can be counted."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from zoo import ZOO, NestedScopes


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * 1


def test_C1_nothing_after_the_last_node_runs(extract):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    calls = []
    extractor = extract(model, "1")
    model[2].register_forward_hook(lambda *_: calls.append("after"))
    extractor(torch.ones(1, 4))
    assert not calls


def test_C1_trap44_assertions_after_the_last_node_do_not_run(extract):
    class Asserts(nn.Module):
        def forward(self, x):
            y = x + 1
            z = y * 2
            torch._assert(z.shape[0] == 100, "too late to matter")
            return z

    assert list(extract(Asserts(), "add")(torch.ones(2))) == ["add"]


def test_C1_trap33_modules_that_are_not_needed_are_none_of_the_extractor(backend, extract):
    """And gone from memory, except where the real forward is run."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    extractor = extract(model, "0", example_args=(torch.ones(1, 4),))
    gone = weakref.ref(model[1].weight)
    assert [name for name, _ in extractor.named_parameters()] == ["0.weight", "0.bias"]
    if backend != "fx":
        return
    del model
    gc.collect()
    assert gone() is None
    extractor(torch.ones(1, 4))


def test_C2_a_value_is_copied_only_where_something_would_write_it(extract):
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    in_place = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    for model, asked, copies in (
        (plain, ["0", "1"], 0),
        (in_place, ["0", "1"], 1),
        (in_place, ["0"], 0),
    ):
        extractor = extract(model, asked)
        extractor(torch.randn(2, 4))  # hooks learn from it what is overwritten
        features = extractor(torch.randn(2, 4))
        assert _copies_behind(features[asked[-1]].grad_fn) == copies
        assert features["0"].grad_fn.name() == "AddmmBackward0"


def _copies_behind(function):
    if function is None:
        return 0
    behind = sum(_copies_behind(following) for following, _ in function.next_functions)
    return behind + (function.name() == "CloneBackward0")


def test_C2_values_nobody_asked_for_are_not_kept(extract):
    alive = []

    class Watch(nn.Module):
        def forward(self, x):
            y = x + 1
            alive.append(weakref.ref(y))
            return y

    model = nn.Sequential(*[Watch() for _ in range(4)], nn.Flatten(0))
    extractor = extract(
        model, "4", tracer_kwargs={"leaf_modules": [Watch]}, suppress_diff_warning=True
    )
    with torch.no_grad():
        features = extractor(torch.ones(2, 2))
    gc.collect()
    assert [reference() is not None for reference in alive] == [False, False, False, True]
    del features


@pytest.mark.only("fx", why="hooks trace nothing")
def test_C3_the_second_trace_is_skipped_where_no_flag_is_read(names_of, monkeypatch):
    from featuretap.tracing import FeatureTracer

    traced = []
    trace = FeatureTracer.trace_once
    monkeypatch.setattr(
        FeatureTracer, "trace_once", lambda *args: (traced.append(1), trace(*args))[1]
    )
    names_of(NestedScopes())
    assert len(traced) == 1
    names_of(ZOO["TrainEvalBranch"](), suppress_diff_warning=True)
    assert len(traced) == 3


class Shifted(nn.Module):
    """Many additions, the modes of which differ behind them."""

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        for _ in range(self.length):
            x = x + 1
        return x * 2 if self.training else x


def test_C3_creating_is_linear_in_what_is_asked_for_where_the_modes_differ(extract, names_of):
    x, calls = torch.ones(1), []
    for length in (150, 300):
        model, count = Shifted(length), [0]
        names = names_of(model, example_args=(x,), suppress_diff_warning=True)

        def counts(_frame, event, _argument, count=count):
            count[0] += event in ("call", "c_call")

        extract(model, names, example_args=(x,))  # what is done once in a process
        sys.setprofile(counts)
        try:
            extract(model, names, example_args=(x,))
        finally:
            sys.setprofile(None)
        calls += count
    assert calls[1] < 2.2 * calls[0]
