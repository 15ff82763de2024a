"""Rules V2, M5, N6: what forwards, modules and copies do with modes and with the model itself."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

import featuretap
from support import identical, snapshot

X = torch.linspace(-1, 1, 8).view(2, 4)


class Frozen(nn.Module):
    """Keeps its backbone frozen, whatever the mode."""

    def __init__(self, freeze):
        super().__init__()
        self.backbone = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.freeze = freeze

    def forward(self, x):
        self.freeze(self.backbone)
        return self.backbone(x) * 2


def by_eval(backbone):
    backbone.eval()


def by_each(backbone):
    for module in backbone.modules():
        module.training = False


class FrozenItself(Frozen):
    def __init__(self):
        super().__init__(None)

    def forward(self, x):
        self.backbone.eval()
        return self.backbone(x) * 2


class DropsAlways(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        self.dropout.train()
        return self.dropout(x) * 2


def serves_as_the_model(extractor, model, mode):
    model.train(mode)
    extractor.train(mode)
    fresh = copy.deepcopy(model)
    torch.manual_seed(1)
    expected = fresh(X)
    torch.manual_seed(1)
    return identical(extractor(X)["mul"], expected)


@pytest.mark.parametrize(
    "make", [lambda: Frozen(by_eval), lambda: Frozen(by_each), FrozenItself, DropsAlways]
)
@pytest.mark.parametrize("made_in", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_V2_a_forward_that_sets_a_flag_to_what_it_is(backend, make, made_in, mode):
    for chosen in (backend, "auto") if backend == "hooks" else (backend,):
        model = make().train(made_in)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", featuretap.FallbackWarning)
            extractor = featuretap.create_feature_extractor(model, ["mul"], backend=chosen)
        if getattr(extractor, "missing_modes", {}).get("train" if mode else "eval"):
            assert chosen == "fx"  # which refuses this mode
        else:
            assert serves_as_the_model(extractor, model, mode)


class Follows(nn.Module):
    """Sets another attribute where its flag is set."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "training":
            super().__setattr__("factor", 3.0 if value else 5.0)

    def forward(self, x):
        return x * self.factor


class LooksUp(nn.Module):
    """Looks its attributes up itself."""

    def __getattribute__(self, name):
        if name == "training":
            return object.__getattribute__(self, "__dict__")["training"]
        return super().__getattribute__(name)

    def forward(self, x):
        return x * (3.0 if self.training else 5.0)


class InAThread(nn.Module):
    def forward(self, x):
        seen = []
        thread = threading.Thread(target=lambda: seen.append(self.training))
        thread.start()
        thread.join()
        return x * (3.0 if seen[0] else 5.0)


@pytest.mark.parametrize("kind", [Follows, LooksUp, InAThread])
@pytest.mark.parametrize("made_in", [True, False])
@pytest.mark.parametrize("example", [None, (X,)])
def test_V2_each_mode_is_that_of_the_model_however_it_knows_it(extract, kind, made_in, example):
    model = kind().train(made_in)
    before = snapshot(model)
    extractor = extract(model, ["mul"], example_args=example, suppress_diff_warning=True)
    assert snapshot(model) == before
    for mode in (True, False, True):
        model.train(mode)
        extractor.train(mode)
        assert identical(extractor(X)["mul"], X * (3.0 if mode else 5.0))


class Folds(nn.Module):
    """Adds to its weight in eval mode, as LoRA does; draws where it is switched."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mode", torch.zeros(1))
        self.is_folded = False

    def train(self, mode=True):
        torch.rand(1)
        if mode == self.is_folded:
            self.weight.data += -2 if mode else 2
            self.is_folded = not mode
        self.mode.fill_(mode)
        return super().train(mode)

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize("made_in", [True, False])
@pytest.mark.parametrize("example", [None, (X,)])
def test_M5_what_the_train_of_a_model_writes_is_put_back(extract, names_of, made_in, example):
    model = Folds().train(made_in)
    before, random = snapshot(model), torch.get_rng_state()
    names_of(model, example_args=example)
    extractor = extract(model, ["mul"], example_args=example)
    assert snapshot(model) == before
    assert identical(torch.get_rng_state(), random)
    assert identical(extractor(X)["mul"], model(X))


class WithSlots(nn.Module):
    __slots__ = ("factor",)

    def __init__(self):
        super().__init__()
        self.factor = 3.0

    def forward(self, x):
        return x * self.factor


@pytest.mark.sees_operations
def test_V4_a_module_with_slots_is_served_with_an_example(extract, names_of):
    model = WithSlots()
    assert names_of(model, example_args=(X,)) == ["x", "mul"]
    extractor = extract(model, ["mul"], example_args=(X,))
    assert identical(extractor(X)["mul"], X * 3)
    assert featuretap.verify(extractor, model, X).equal


KNOWN = []


class Registry:
    """Finds a module in a way that no code of the model names."""

    def __getitem__(self, name):
        return KNOWN[-1]


REGISTRY = Registry()


class FindsTheNorm(nn.Module):
    def forward(self, x):
        return REGISTRY["norm"](x) * 2


class HasTheNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.finds = nn.BatchNorm1d(4), FindsTheNorm()
        KNOWN.append(self.norm)

    def forward(self, x):
        return self.finds(x)


@pytest.mark.parametrize("mode", [True, False])
def test_M5_V4_an_example_that_comes_back_to_the_model_leaves_it_alone(extract, names_of, mode):
    model = HasTheNorm().train(mode)
    before = snapshot(model)
    assert "norm" in names_of(model, example_args=(X,))
    extractor = extract(model, ["norm", ""], example_args=(X,))
    assert featuretap.verify(extractor, model, X).equal
    assert snapshot(model) == before
    expected = copy.deepcopy(model.norm)(X)
    assert identical(extractor(X)["norm"], expected)


class HasItsOwnEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = 1

    def eval(self):
        self.factor = 2
        return super().eval()

    def forward(self, x):
        return x * self.factor


@pytest.mark.only("hooks", why="a graph has no methods of the model")
def test_M1_an_extractor_is_switched_by_the_eval_of_the_model(extract):
    extractor = extract(HasItsOwnEval(), ["mul"])
    assert identical(extractor.eval()(X)["mul"], X * 2)


class ForInference(nn.Module):
    def train(self, mode=True):
        if mode:
            raise RuntimeError("for inference only")
        return super().train(mode)

    def forward(self, x):
        return x * 2


def test_V4_a_model_that_refuses_a_mode_is_served_in_the_other(extract):
    model = ForInference().eval()
    extractor = extract(model, ["mul"], example_args=(X,))
    assert identical(extractor(X)["mul"], X * 2)
