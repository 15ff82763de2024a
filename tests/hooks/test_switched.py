"""What a forward does in ways that its code does not show is seen when it runs."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging

import numpy
import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor, get_graph_node_names
from support import snapshot
from zoo import WithoutForward

X = torch.ones(2, 4)


@contextlib.contextmanager
def scaled(net):
    net.lin.weight.data.mul_(2)
    yield
    net.lin.weight.data.div_(2)


@contextlib.contextmanager
def flagged(net):
    was = net.norm.training
    net.norm.eval()
    yield
    net.norm.train(was)


@contextlib.contextmanager
def frozen(net):
    net.lin.weight.requires_grad_(False)
    yield
    net.lin.weight.requires_grad_(True)


@contextlib.contextmanager
def noted(net):
    net.table["rate"] = 2
    yield
    net.table["rate"] = 1


def bare_decorator(around):
    def decorate(function):
        def inner(self, *args):
            with around(self):
                return function(self, *args)

        return inner

    return type(
        "Decorated", (WithoutForward,), {"forward": decorate(lambda self, x: self.run(x))}
    )()


def callable_in_a_list(around):
    def forward(self, x):
        return self.steps[0](self, x)

    def step(self, x):
        with around(self):
            return self.run(x)

    model = type("Listed", (WithoutForward,), {"forward": forward})()
    model.steps = [step]
    return model


def partial_of_the_instance(around):
    def step(self, x):
        with around(self):
            return self.run(x)

    model = WithoutForward()
    model.forward = functools.partial(step, model)
    return model


class Depth:
    """Counts from a default of its class."""

    value = 0

    def change(self, by):
        self.value += by


def counts_in_an_object(self, by):
    self.depth.change(by)
    return self.depth.value


def counts_in_a_counter(self, by):
    self.counter["a"] += by
    return self.counter["a"]


def counts_in_an_array(self, by):
    self.array[0] += by
    return float(self.array[0])


def counts_in_bytes(self, by):
    self.bytes[0] += by
    return self.bytes[0]


@pytest.mark.parametrize(
    "count", [counts_in_an_object, counts_in_a_counter, counts_in_an_array, counts_in_bytes]
)
@pytest.mark.parametrize("example", [False, True])
def test_M5_V1_what_is_counted_up_and_down_is_down_after_an_early_end(count, example):
    def forward(self, x):
        y = self.lin(x) * count(self, 1)
        z = self.norm(y)
        count(self, -1)
        return self.out(z)

    model = type("Counts", (WithoutForward,), {"forward": forward})()
    model.depth, model.counter = Depth(), collections.Counter()
    model.array, model.bytes = numpy.zeros(1), bytearray(1)
    extractor = create_feature_extractor(model, ["mul"], example_args=(X,) if example else None)
    for _ in range(4):
        assert torch.equal(extractor(X)["mul"], model.lin(X))
    assert (model.depth.value, model.counter["a"], model.array[0], model.bytes[0]) == (0, 0, 0, 0)


def test_C1_what_is_only_added_to_a_list_does_not_keep_a_forward_from_ending():
    ran = []

    def forward(self, x):
        self.seen.append(1)
        y = self.lin(x)
        self.seen.append(2)
        ran.append(1)
        return self.out(y)

    model = type("Appends", (WithoutForward,), {"forward": forward})()
    model.seen = []
    extractor = create_feature_extractor(model, ["lin"])
    extractor(X)
    ran.clear()
    extractor(X)
    assert not ran


@contextlib.contextmanager
def without_logging():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@contextlib.contextmanager
def other_errors_of_numpy():
    old = numpy.seterr(divide="ignore")
    yield
    numpy.seterr(**old)


@contextlib.contextmanager
def without_mkldnn():
    torch.backends.mkldnn.set_flags(False)
    yield
    torch.backends.mkldnn.set_flags(True)


@contextlib.contextmanager
def with_autocast():
    torch.set_autocast_cpu_enabled(True)
    yield
    torch.set_autocast_cpu_enabled(False)


def settings():
    return (
        logging.root.manager.disable,
        numpy.geterr(),
        torch._C._get_mkldnn_enabled(),
        torch.is_autocast_cpu_enabled(),
    )


@pytest.mark.filterwarnings("ignore:.*autocast_cpu_enabled.*:DeprecationWarning")
@pytest.mark.parametrize(
    "switched", [without_logging, other_errors_of_numpy, without_mkldnn, with_autocast]
)
def test_M5_a_setting_of_the_process_is_back_after_an_early_end(switched):
    def forward(self, x):
        with switched():
            return self.run(x)

    model, before = type("Switches", (WithoutForward,), {"forward": forward})(), settings()
    extractor = create_feature_extractor(model, ["lin"])
    for _ in range(2):
        extractor(X)
        assert settings() == before


@pytest.mark.parametrize("make", [bare_decorator, callable_in_a_list, partial_of_the_instance])
@pytest.mark.parametrize("around", [scaled, flagged, frozen, noted])
@pytest.mark.parametrize("example", [False, True])
def test_M5_C1_what_no_code_shows_is_switched_back_after_an_early_end(make, around, example):
    model = make(around)
    expected = model(X)
    assert expected.shape == (2, 2)
    before = snapshot(model)
    extractor = create_feature_extractor(
        model, ["lin"], example_args=(X,) if example else None, suppress_diff_warning=True
    )
    with around(model):
        real = nn.functional.linear(X, model.lin.weight).detach()
    for _ in range(3):
        assert torch.equal(extractor(X)["lin"].detach(), real)
        assert snapshot(model) == before


def test_C1_a_forward_that_switches_nothing_ends_early_from_the_first_call():
    ran = []
    model = WithoutForward()
    type(model).forward = WithoutForward.run
    model.out.register_forward_hook(lambda *_: ran.append(1))
    create_feature_extractor(model, ["lin"])(X)
    assert not ran


def test_V5_trap43_an_end_that_the_model_swallows_is_an_end():
    class Suppresses(WithoutForward):
        def forward(self, x):
            with contextlib.suppress(BaseException):
                y = self.lin(x)
            return self.out(y)

    model = Suppresses()
    for _ in range(2):
        assert torch.equal(create_feature_extractor(model, ["lin"])(X)["lin"], model.lin(X))


def test_N8_what_a_child_writes_counts_where_another_scope_reads_it():
    class Tracker(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            self.mean.copy_(x.mean(0))
            return x + 1

        def scaled(self):
            return self.mean * 2

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.tracker = Tracker()

        def forward(self, x):
            y = self.tracker(x)
            return self.tracker.scaled() + y * 3

    for example in (None, (X,)):
        model = nn.Sequential(Block())
        extractor = create_feature_extractor(model, ["0.mul_1"], example_args=example)
        for step in (1, 2):
            assert torch.equal(extractor(X * step)["0.mul_1"], (X * step + 1) * 3)


@pytest.mark.parametrize(
    "convert",
    [
        lambda part, x: part.to(x.dtype)(x),
        lambda part, x: part.to(x.device, x.dtype)(x),
        lambda part, x: part.to(x)(x),
        lambda part, x: part(x.to(torch.promote_types(x.dtype, torch.float16))),
        lambda part, x: part(x.to(torch.result_type(x, 1.0))),
    ],
)
def test_V2_dtypes_and_devices_that_torch_returns_are_the_plain_ones(convert):
    class Converts(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(4, 4)

        def forward(self, x):
            return convert(self.part, x) * 2

    model = Converts()
    assert "mul" in get_graph_node_names(model, example_args=(X,))
    features = create_feature_extractor(model, ["mul"], example_args=(X,))(X)
    assert torch.equal(features["mul"], model(X))
