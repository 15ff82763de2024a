"""Rules M3, M5, M6, V4, C2: an extractor as an object: its source, its copies, its layers, its end."""

from __future__ import annotations

import copy
import gc
import inspect
import linecache
import sys
import threading
import weakref

import pytest
import torch
from torch import nn

import featuretap
import featuretap.torchvision
from featuretap.keeping.undisturbed import ONE_AT_A_TIME
from support import identical

X = torch.linspace(-1, 1, 8).view(4, 2)


def layers():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())


@pytest.mark.only("fx", why="hooks write no source")
def test_M6_the_source_of_each_extractor_is_its_own_and_goes_with_it(extract):
    model = layers().eval()
    sources = set(linecache.cache)
    extractors = [extract(model, [name]) for name in "012" for _ in range(5)]
    files = {extractor.forward.__code__.co_filename for extractor in extractors}
    assert len(files) == len(extractors)
    for extractor in extractors:
        (name,) = extractor.return_nodes
        assert f"[{name!r}](" in inspect.getsource(extractor.forward)
    del extractors, extractor
    gc.collect()
    assert files.isdisjoint(linecache.cache)
    assert set(linecache.cache) <= sources | set(linecache.cache)


def doubled(x):
    return x * 2


class CallsAFunction(nn.Module):
    def forward(self, x, n=3):
        return doubled(x) * n


@pytest.mark.sees_operations
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_V4_a_copy_of_an_extractor_is_proved_like_the_extractor(extract, copied):
    model = CallsAFunction()
    chosen = {"tracer_kwargs": {"autowrap_functions": [doubled]}, "concrete_args": {"n": 4}}
    extractor = extract(model, ["doubled", "mul"], **chosen)
    for one in (extractor, copied(extractor)):
        assert featuretap.verify(one, model, X).equal


class Empty(nn.Module):
    """Has a layer that is called like memory that nothing has written."""

    def __init__(self):
        super().__init__()
        self.empty = nn.Linear(2, 2)

    def forward(self, x):
        return self.empty(x)


def test_V4_a_layer_called_empty_is_compared(extract):
    model = Empty()
    report = featuretap.verify(extract(model, ["empty"]), model, X)
    assert [check.equal for check in report] == [True]


STATE = torch.zeros(1)


class LeavesThings(nn.Module):
    """Writes a global, and puts a hook and an attribute on a parameter; says itself how it is copied."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        STATE.add_(1)
        self.weight.register_hook(lambda gradient: gradient * 2)
        self.weight.tag = 1
        return x * self.weight

    def __deepcopy__(self, memo):
        return type(self)()


@pytest.mark.only("hooks", why="fx refuses such a forward")
def test_M5_verify_puts_back_what_the_forward_leaves_outside(extract):
    model = LeavesThings()
    extractor = extract(model, ["mul"])
    before = STATE.clone()
    assert featuretap.verify(extractor, model, X).equal
    assert identical(STATE, before)
    assert not model.weight._backward_hooks
    assert not hasattr(model.weight, "tag")


class FailsLate(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.BatchNorm1d(2))

    def forward(self, x, y):
        return self.block(x) + y


@pytest.mark.only("fx", why="to hooks the model is what it is now")
@pytest.mark.parametrize("calls", [0, 1])
def test_M5_a_failing_call_leaves_a_layer_alone_that_was_exchanged_before_it(extract, calls):
    extractor = extract(FailsLate().train(), ["add"])
    for _ in range(calls):
        extractor(X, X)
    new = nn.BatchNorm1d(2)
    setattr(extractor.block, "0", new)
    with pytest.raises(RuntimeError):
        extractor(X, torch.ones(3, 3))
    assert int(new.num_batches_tracked) == 0


@pytest.mark.only("fx", why="hooks switch the model")
def test_M2_train_switches_an_extractor_of_which_a_layer_was_taken_away(extract):
    model = layers().train()
    model[1].eval()
    extractor = extract(model, ["2"])
    extractor._modules.pop("1")
    assert extractor.eval().train().get_submodule("2").training


def doubles_itself():
    layer = nn.Linear(2, 2)
    earlier = layer.forward
    layer.forward = lambda x: earlier(x) * 2
    return nn.Sequential(layer)


def test_C2_a_model_whose_forward_knows_it_is_freed(extract, names_of):
    model = doubles_itself()
    died = weakref.ref(model[0])
    names_of(model, example_args=(X,))
    extract(model, ["0"])(X)
    del model
    gc.collect()
    assert died() is None


def test_N8_a_function_is_one_node_though_a_python_module_is_none(names_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "no_module", object())
    chosen = {"autowrap_functions": [doubled]}
    names = names_of(CallsAFunction(), tracer_kwargs=chosen, example_args=(X,))
    assert "doubled" in names


class Branches(nn.Module):
    def forward(self, x):
        return x.tan() if self.training else x.exp()


ANOTHER = Branches()


class Asks(nn.Module):
    """Lists another model in its own forward."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        if self.training:
            x = x.sin()
        featuretap.get_graph_node_names(ANOTHER, suppress_diff_warning=True, backend="fx")
        if self.training:
            x = x.cos()
        return self.dropout(x)


def test_N2_a_forward_that_lists_another_model_is_listed_in_each_mode_of_its_own(names_of):
    names = names_of(Asks(), example_args=(X,), suppress_diff_warning=True)
    assert names.train == ["x", "sin", "cos", "dropout"]
    assert names.eval == ["x", "dropout"]


@pytest.mark.parametrize("create", [featuretap.torchvision, featuretap])
def test_M4_an_extractor_is_in_the_mode_of_its_model_while_another_thread_traces(
    create, monkeypatch
):
    """The other thread waits for its turn to switch the model until the extractor is made."""
    model, turns = layers().train(), []
    original = featuretap.fx_backend._assemble

    def assemble(*args, **kwargs):
        def other():
            turns.append(ONE_AT_A_TIME.acquire(blocking=False))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return original(*args, **kwargs)

    monkeypatch.setattr(featuretap.fx_backend, "_assemble", assemble)
    assert create.create_feature_extractor(model, ["0"]).training
    assert turns == [False]


class Fuses(nn.Module):
    """Makes a layer in eval mode, as RepVGG."""

    def __init__(self):
        super().__init__()
        self.part = nn.Linear(2, 2)

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self._modules.pop("fused", None)
        elif not hasattr(self, "fused"):
            self.fused = nn.Linear(2, 2)
        return self

    def forward(self, x):
        return (self.fused if hasattr(self, "fused") else self.part)(x)


@pytest.mark.only("hooks", why="a graph keeps the layers that it was made of")
def test_M2_a_layer_that_comes_back_with_its_mode_is_watched_again(extract):
    model = nn.Sequential(Fuses(), nn.Linear(2, 2)).eval()
    names = {True: ["1"], False: ["0.fused", "1"]}
    extractor = extract(model, None, names[True], names[False], example_args=(X,))
    for mode in (False, True, False, True, False):
        extractor.train(mode)
        features = extractor(X)
        assert list(features) == names[mode]
        assert identical(features["1"], model(X))
        assert mode or identical(features["0.fused"], model[0](X))
