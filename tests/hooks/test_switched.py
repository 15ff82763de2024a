"""What a forward does in ways that its code does not show is seen when it runs."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import threading

import numpy
import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor, get_graph_node_names
from support import snapshot

X = torch.ones(2, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.out = nn.Linear(4, 2)
        self.table = {"rate": 1}

    def run(self, x):
        return self.out(self.norm(self.lin(x)))


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

    return type("Decorated", (Net,), {"forward": decorate(lambda self, x: self.run(x))})()


def callable_in_a_list(around):
    def forward(self, x):
        return self.steps[0](self, x)

    def step(self, x):
        with around(self):
            return self.run(x)

    model = type("Listed", (Net,), {"forward": forward})()
    model.steps = [step]
    return model


def partial_of_the_instance(around):
    def step(self, x):
        with around(self):
            return self.run(x)

    model = Net()
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

    model = type("Counts", (Net,), {"forward": forward})()
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

    model = type("Appends", (Net,), {"forward": forward})()
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

    model, before = type("Switches", (Net,), {"forward": forward})(), settings()
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
    model = Net()
    type(model).forward = Net.run
    model.out.register_forward_hook(lambda *_: ran.append(1))
    create_feature_extractor(model, ["lin"])(X)
    assert not ran


def test_V5_trap43_an_end_that_the_model_swallows_is_an_end():
    class Suppresses(Net):
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


DEPTH, SCALE, STACK = 0, {"scale": 1.0}, []
LOCK = threading.Lock()


def counts_its_depth(net, x):
    global DEPTH
    DEPTH += 1
    y = net.run(x)
    DEPTH -= 1
    return y


def scales_for_a_while(net, x):
    x = x * SCALE["scale"]
    SCALE["scale"] *= 2
    y = net.run(x)
    SCALE["scale"] /= 2
    return y


def pushes_and_pops(net, x):
    STACK.append(x)
    y = net.run(x)
    STACK.pop()
    return y


def holds_a_lock(net, x):
    assert LOCK.acquire(timeout=1)
    y = net.run(x)
    LOCK.release()
    return y


def sets_the_environment(net, x):
    os.environ["FEATURETAP_TEST"] = "1"
    y = net.run(x)
    del os.environ["FEATURETAP_TEST"]
    return y


def asks_for_determinism(net, x):
    torch.use_deterministic_algorithms(True)
    y = net.run(x)
    torch.use_deterministic_algorithms(False)
    return y


def chooses_a_precision(net, x):
    torch.set_float32_matmul_precision("medium")
    y = net.run(x)
    torch.set_float32_matmul_precision("highest")
    return y


def keeps_the_random_state(net, x):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    y = net.run(x + torch.rand(4))
    torch.set_rng_state(state)
    return y


def scales_its_argument(net, x):
    x.mul_(2)
    y = net.run(x)
    x.div_(2)
    return y


def moves_statistics(net, x):
    kept = net.table["sum"].clone()
    net.table["sum"].add_(x.detach().sum(0))
    y = net.run(x * net.table["sum"])
    net.table["sum"].copy_(kept)
    return y


FOR_A_WHILE = [
    counts_its_depth,
    scales_for_a_while,
    pushes_and_pops,
    holds_a_lock,
    sets_the_environment,
    asks_for_determinism,
    chooses_a_precision,
    keeps_the_random_state,
    scales_its_argument,
    moves_statistics,
]


def state_outside():
    return (
        *(DEPTH, dict(SCALE), len(STACK), LOCK.locked(), "FEATURETAP_TEST" in os.environ),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("forward", FOR_A_WHILE)
@pytest.mark.parametrize("example", [(), (X,)])
def test_M5_what_is_changed_back_at_the_end_of_a_forward_is_changed_back(forward, example):
    net = type("Changes", (Net,), {"forward": forward})().eval()
    net.table["sum"] = torch.ones(4)
    x = X.clone()
    seen = []
    with net.lin.register_forward_hook(lambda _m, _a, value: seen.append(value.detach())):
        net(x)
    before = state_outside()
    extractor = create_feature_extractor(net, ["lin"], example_args=example or None)
    for _ in range(3):
        assert torch.equal(extractor(x)["lin"], seen[0])
        assert state_outside() == before
        assert torch.equal(x, X)
        assert torch.equal(net.table["sum"], torch.ones(4))


class TakesADict(nn.Module):
    """Sets keys of its argument for a while."""

    def __init__(self):
        super().__init__()
        self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        kept = x["a"]
        x["a"], x["n"] = kept * 2, 1
        y = self.out(self.lin(x["a"]))
        x["a"] = kept
        del x["n"]
        return y


def test_M5_a_container_that_the_caller_passed_is_as_before():
    extractor, given = create_feature_extractor(TakesADict().eval(), ["lin"]), {"a": X}
    for _ in range(3):
        extractor(given)
        assert list(given) == ["a"]
        assert given["a"] is X
