"""What a forward changes for a while, also where it ends early, is changed back."""

from __future__ import annotations

import contextvars
import os
import threading

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor
from zoo import WithoutForward

X = torch.ones(2, 4)

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
    net = type("Changes", (WithoutForward,), {"forward": forward})().eval()
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


GLOBALLY = contextvars.ContextVar("GLOBALLY", default=0)


def set_weight(net, scale):
    with torch.no_grad():
        net.lin.weight.mul_(scale)


IN_A_BRANCH = {
    "a buffer": (lambda n, x: n.table_.mul_(2), lambda n, x: n.table_.div_(2)),
    "an item of a buffer": (
        lambda n, x: n.table_.__setitem__(0, 9.0),
        lambda n, x: n.table_.__setitem__(0, 1.0),
    ),
    "a tensor in a list": (lambda n, x: n.kept[0].add_(1), lambda n, x: n.kept[0].sub_(1)),
    "a weight": (lambda n, x: set_weight(n, 2), lambda n, x: set_weight(n, 0.5)),
    "the data of a weight": (
        lambda n, x: n.out.weight.data.mul_(2),
        lambda n, x: n.out.weight.data.div_(2),
    ),
    "a list": (lambda n, x: n.kept.append(1), lambda n, x: n.kept.pop()),
    "a dict": (lambda n, x: n.table.update(b=1), lambda n, x: n.table.pop("b")),
    "an attribute": (lambda n, x: setattr(n, "label", 9), lambda n, x: setattr(n, "label", 0)),
    "a global dict": (lambda n, x: SCALE.update(scale=9.0), lambda n, x: SCALE.update(scale=1.0)),
    "a context variable": (lambda n, x: GLOBALLY.set(9), lambda n, x: GLOBALLY.set(0)),
    "its argument": (lambda n, x: x.mul_(2), lambda n, x: x.div_(2)),
}


@pytest.mark.parametrize("what", IN_A_BRANCH)
@pytest.mark.parametrize("node", ["lin", "mul"])
def test_M5_what_a_later_forward_alone_changes_for_a_while_is_changed_back(what, node):
    do, undo = IN_A_BRANCH[what]

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
            self.register_buffer("table_", torch.ones(1))
            self.kept, self.table, self.label = [torch.ones(1)], {"a": 1}, 0

        def forward(self, x):
            changes = x.shape[0] > 2
            if changes:
                do(self, x)
            y = self.lin(x) * 2
            if changes:
                undo(self, x)
            return self.out(y)

    def state():
        values = (net.label, len(net.kept), dict(net.table), dict(SCALE), GLOBALLY.get())
        tensors = [*net.state_dict().values(), net.kept[0]]
        return values, [tensor.tolist() for tensor in tensors]

    torch.manual_seed(0)
    net, x = Branches().eval(), torch.ones(3, 4)
    before = state()
    for first in (X, x):
        extractor = create_feature_extractor(net, [node])
        extractor(first.clone())
        for _ in range(3):
            given = x.clone()
            extractor(given)
            assert state() == before
            assert torch.equal(given, x)


def sets_a_context_variable(net, x):
    token = GLOBALLY.set(5)
    y = net.out(net.lin(x) * 2)
    GLOBALLY.reset(token)
    return y


class SetsAGlobal:
    def __call__(self, net, x):
        SCALE["scale"] = 5.0
        y = net.out(net.lin(x) * 2)
        SCALE["scale"] = 1.0
        return y


@pytest.mark.parametrize("function", [sets_a_context_variable, SetsAGlobal()])
@pytest.mark.parametrize("example", [(), (X,)])
def test_M5_what_a_function_on_the_model_changes_for_a_while_is_changed_back(function, example):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
            self.run = function

        def forward(self, x):
            return self.run(self, x)

    extractor = create_feature_extractor(Calls(), ["lin"], example_args=example or None)
    for _ in range(3):
        extractor(X)
        assert (GLOBALLY.get(), SCALE) == (0, {"scale": 1.0})


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
