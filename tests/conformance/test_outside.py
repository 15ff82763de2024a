"""Rules V2, E2, M5: state that a forward keeps outside of the model."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn

import featuretap
from outside import (
    FUNCTIONS,
    LOG,
    STATEFUL,
    TABLES,
    TENSORS,
    counts_in_a_tensor_of_a_list,
    net,
    start_again,
)

FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")

COUNT = 0


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 3.0))

    @functools.lru_cache(None)  # noqa: B019
    def doubled(self):
        return self.scale * 2

    def forward(self, x):
        return x * self.doubled()


@pytest.fixture(autouse=True)
def _as_at_first():
    start_again()


@FX_ONLY
@pytest.mark.parametrize(("function", "reason"), STATEFUL, ids=lambda v: getattr(v, "__name__", ""))
def test_E2_V2_state_outside_of_the_model_is_refused(extract, function, reason):
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        extract(net(function), "")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_M5_V2_making_does_not_move_what_the_calls_move(backend, function):
    model, x = nn.Sequential(net(function)), torch.arange(12.0).reshape(3, 4)
    real = [model(x) for _ in range(3)]
    start_again()
    options = {"backend": backend, "example_args": (x,)}
    assert "0" in {
        name.partition(".")[0] for name in featuretap.get_graph_node_names(model, **options)
    }
    extractor = featuretap.create_feature_extractor(model, ["0"], **options)
    for expected in real:
        assert torch.equal(extractor(x)["0"], expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_M5_a_call_that_fails_leaves_what_is_outside_as_it_was(extract, function):
    def sometimes_fails(self, x):
        y = function(self, x)
        if x[0, 0] < 0:
            raise ValueError("below zero")
        return y

    model, x = nn.Sequential(net(sometimes_fails)), torch.arange(12.0).reshape(3, 4)
    real = [model(x) for _ in range(2)]
    start_again()
    extractor = extract(model, "0")
    assert torch.equal(extractor(x)["0"], real[0])
    with pytest.raises(ValueError, match="below zero"):
        extractor(x - 1)
    assert torch.equal(extractor(x)["0"], real[1])


def counts_what_nobody_reads(self, x):
    global COUNT
    COUNT += 1
    return self.lin(x) * 2


def logs_what_nobody_reads(self, x):
    LOG.append(1)
    return self.lin(x) * 2


def reads_what_is_outside(self, x):
    return self.lin(x) * (self.factor + len(LOG) + COUNT)


def keeps_a_table(self, x):
    if 4 not in TABLES:
        TABLES[4] = torch.arange(4.0)
    return self.lin(x) + TABLES[4]


def sets_its_own_attribute(self, x):
    self.calls = 3
    return self.lin(x) * self.calls


NO_STATE = [
    counts_what_nobody_reads,
    logs_what_nobody_reads,
    reads_what_is_outside,
    keeps_a_table,
    sets_its_own_attribute,
]


@pytest.mark.parametrize("function", NO_STATE)
def test_V2_what_is_outside_and_is_not_read_again_is_no_state(extract, function):
    model, x = net(function), torch.arange(12.0).reshape(3, 4)
    extractor = extract(model, "")
    for _ in range(2):
        assert torch.equal(extractor(x)[""], model(x))


def test_M5_a_tensor_in_a_global_list_is_as_it_was(backend, extract):
    model, x = net(counts_in_a_tensor_of_a_list), torch.arange(12.0).reshape(3, 4)
    with contextlib.suppress(featuretap.UntraceableModelError):
        featuretap.get_graph_node_names(model, backend=backend, example_args=(x,))
    assert not TENSORS[0].any()
    with contextlib.suppress(featuretap.UntraceableModelError):
        extractor = extract(model, "", example_args=(x,))
        with pytest.raises(RuntimeError, match="shape"):
            extractor(torch.ones(3, 5))
    assert not TENSORS[0].any()


def test_V2_M5_what_functools_keeps_is_not_left_from_a_trace(backend, extract):
    """It would be stand-ins, or what the model had while it was traced."""
    model, x = Scales(), torch.arange(12.0).reshape(3, 4)
    with contextlib.suppress(featuretap.UntraceableModelError):
        featuretap.get_graph_node_names(model, backend=backend, example_args=(x,))
        extract(model, "", example_args=(x,))
    model.scale.fill_(4)
    assert torch.equal(model(x), x * 8)
    Scales.doubled.cache_clear()


class Counter:
    calls = 0


COUNTER = Counter()


def counts_on_an_object(self, x):
    COUNTER.calls += 1
    return x * 2


def test_M5_an_attribute_that_an_object_has_of_its_class_alone_is_not_left_on_it(backend, extract):
    model, x = net(counts_on_an_object), torch.arange(12.0).reshape(3, 4)
    for _ in range(2):
        with contextlib.suppress(featuretap.UntraceableModelError):
            featuretap.get_graph_node_names(model, backend=backend, example_args=(x,))
            extract(model, "mul", example_args=(x,))
        assert vars(COUNTER) == {}
