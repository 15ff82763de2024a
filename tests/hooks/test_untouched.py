"""What listing leaves alone: the hooks of other threads; what it puts back: generators, queues, caches."""

from __future__ import annotations

import collections
import copy
import random
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import featuretap_hooks
from featuretap.keeping.put_back import is_own_hook
from featuretap.keeping.undisturbed import undisturbed
from featuretap.keeping.untouched import Untouched
from support import here, identical, snapshot
from zoo import linear

create = featuretap_hooks.create_feature_extractor
names_of = featuretap_hooks.get_graph_node_names
X = torch.ones(2, 4)


class Inplace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        self.l = nn.Linear(4, 4)

    def forward(self, x):
        h = (self.a(self.l(x) + 1) * 2).clone()
        h.add_(1)
        return h - 3


@pytest.fixture
def often():
    """Threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_M4_an_extractor_runs_in_another_thread_while_the_model_is_listed(often):
    model = Inplace().eval()
    before, failures, done = snapshot(model), [], threading.Event()

    def extract(names):
        extractor = create(model, names)
        expected = extractor(X)
        while not done.is_set():
            try:
                assert identical(dict(extractor(X)), dict(expected))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=extract, args=(n,)) for n in (["a.0", "sub"], ["a.1"])]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            names_of(model, example_args=(X,))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert snapshot(model) == before


def test_M4_a_wrapped_forward_of_another_thread_stays_as_long_as_it_is_needed():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    model = nn.Sequential(layer)
    seen = {}

    class Meanwhile(nn.Module):
        def forward(self, x):
            seen["inside"] = vars(layer).get("forward")
            untouched = Untouched(model)
            layer.note = 1
            untouched.restore()
            seen["kept"] = vars(layer).get("forward")
            return x

    whole = nn.Sequential(layer, Meanwhile())
    create(whole, ["0", "1"])(torch.ones(1, 2, 4))
    assert seen["inside"] is not None
    assert seen["kept"] is seen["inside"]
    assert "forward" not in vars(layer)
    assert not hasattr(layer, "note")


def test_M6_hooks_of_featuretap_are_told_from_the_users():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []

    class Looks(nn.Module):
        def forward(self, x):
            for hooks in (model[0]._forward_hooks, model[0]._forward_pre_hooks):
                seen.extend(map(is_own_hook, hooks.values()))
            return x

    model.append(Looks())
    model[0].register_forward_hook(lambda *_: None)
    create(model, ["0", "2"])(X)
    assert sorted(seen) == [False, True, True]


class Draws(nn.Module):
    """Draws from generators of its own, and counts."""

    def __init__(self):
        super().__init__()
        self.torch = torch.Generator(here()).manual_seed(1)
        self.random = random.Random(2)
        self.legacy = np.random.RandomState(3)
        self.numpy = {"held": [np.random.default_rng(4)]}
        self.queue = collections.deque([1, 2], maxlen=2)
        self.pair = (collections.deque([1]),)
        self.cache = {"state": [torch.zeros(2)]}

    def forward(self, x):
        self.queue.append(3)
        self.pair[0].append(3)
        self.cache["state"][0].add_(1)
        x = x + torch.rand(1, generator=self.torch) + self.random.random() + self.random.gauss()
        return x * self.legacy.rand() * self.numpy["held"][0].random()

    def drawn(self):
        return (
            torch.rand(2, generator=self.torch).tolist(),
            self.random.random(),
            self.legacy.rand(),
            self.numpy["held"][0].random(),
            list(self.queue),
            list(self.pair[0]),
            self.cache["state"][0].tolist(),
        )


def listing(model):
    names_of(model, example_args=(X,))


def creating(model):
    create(model, "mul", example_args=(X,))


def running(model):
    with undisturbed(model):
        model(X)


@pytest.mark.parametrize("work", [listing, creating, running])
def test_M5_generators_queues_and_caches_of_a_model_are_put_back(work):
    model = Draws()
    queue, cache = model.queue, model.cache["state"][0]
    work(model)
    assert model.queue is queue
    assert model.cache["state"][0] is cache
    assert cache._version == 0
    assert model.drawn() == Draws().drawn()


def test_M5_attributes_are_put_back_one_by_one():
    model = nn.Linear(4, 4)
    model.kept = kept = [1]
    untouched = Untouched(model)
    registry = model._parameters
    model.new, model.kept = 1, [2]
    del model.in_features
    untouched.restore()
    assert model.kept is kept
    assert model.in_features == 4
    assert not hasattr(model, "new")
    assert model._parameters is registry


class AdaptsItself(nn.Module):
    """Trains itself in each call, as test-time adaptation does."""

    def __init__(self, optimizer):
        super().__init__()
        self.lin = linear(1)
        self.optimizer = optimizer(self.lin.parameters())

    @torch.enable_grad()
    def forward(self, x):
        y = self.lin(x)
        y.pow(2).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return y


class ByHand:
    """Writes the weights, and their gradients, itself."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self):
        for parameter in self.parameters:
            parameter.data.sub_(parameter.grad / 10)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad.zero_()


@pytest.mark.parametrize("has_gradients", [False, True])
@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1), torch.optim.Adam, ByHand])
def test_M5_an_example_leaves_no_gradient_of_a_forward_that_trains(optimizer, has_gradients):
    model, plain = AdaptsItself(optimizer).eval(), AdaptsItself(optimizer).eval()
    if has_gradients:
        for net in (model, plain):
            net.lin(X).sum().backward()
    before = snapshot(model)
    names_of(model, example_args=(X,))
    extractor = create(model, ["lin", ""], example_args=(X,))
    assert snapshot(model) == before
    for _ in range(3):
        assert identical(extractor(X)[""], plain(X))


class KeepsACopy(nn.Module):
    """Its first forward copies a layer, and has the copy compute something else."""

    def __init__(self, copy_of):
        super().__init__()
        self.net, self.fast, self.copy_of = linear(1), None, copy_of

    def forward(self, x):
        if self.fast is None:
            self.fast = self.copy_of(self.net)
            self.fast._parameters = {"weight": nn.Parameter(torch.eye(4)), "bias": None}
        return self.net(x) + self.fast(x)


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, lambda m: copy.copy(copy.copy(m))])
@pytest.mark.parametrize("nodes", [["add"], ["net"], ["net", ""]])
def test_M5_a_copy_that_the_forward_makes_is_free_of_hooks(copy_of, nodes):
    model, plain = KeepsACopy(copy_of).eval(), KeepsACopy(copy_of).eval()
    create(model, nodes, early_stop=False)(X)
    expected = plain(X)
    assert "forward" not in vars(model.fast)
    assert identical(copy.deepcopy(model)(X), expected)
    assert identical(model(X), expected)


class HooksItsWeight(nn.Module):
    """Halves the gradient of its weight from the first forward on, and says so in an attribute."""

    def __init__(self, register):
        super().__init__()
        self.lin, self.register, self.is_ready = linear(1), register, False

    def halve(self, gradient):
        if gradient is self.lin.weight:  # after it was accumulated
            gradient.grad.mul_(0.5)
            return None
        return gradient * 0.5

    def forward(self, x):
        if not self.is_ready:
            getattr(self.lin.weight, self.register)(self.halve)
            self.is_ready = self.lin.weight.is_halved = True
        return self.lin(x) + 1


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_M5_an_example_leaves_no_hook_on_a_parameter(register):
    model, plain = HooksItsWeight(register), HooksItsWeight(register)
    names_of(model, example_args=(X,))
    extractor = create(model, ["lin", ""], example_args=(X,))
    assert not hasattr(model.lin.weight, "is_halved")
    extractor(X)[""].sum().backward()
    plain(X).sum().backward()
    assert identical(model.lin.weight.grad, plain.lin.weight.grad)


@pytest.mark.parametrize("node", ["mul", "lin"])
def test_M2_tensors_of_a_model_can_be_swapped_after_a_call(node):
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.register_buffer("table", torch.ones(4))

        def forward(self, x):
            return self.lin(x + self.table) * 2

    model, x = Holds(), torch.rand(2, 4)
    extractor = create(model, [node])
    for _ in range(2):
        extractor(x)
    for tensor in (model.table, model.lin.weight):
        other = type(tensor)(torch.zeros_like(tensor))
        torch.utils.swap_tensors(tensor, other)
    assert identical(extractor(x)[node], model(x) if node == "mul" else model.lin(x))
