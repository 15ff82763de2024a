"""Rules V1, V2: tensors that a module or a hook leaves where another module finds them."""

from __future__ import annotations

import contextlib
import types
import warnings

import pytest
import torch
from torch import nn

import featuretap
from support import identical

X, Z = torch.linspace(-1, 1, 8).view(2, 4), torch.linspace(2, 3, 8).view(2, 4)
KEPT: dict[str, torch.Tensor] = {}


class Leaves(nn.Module):
    def __init__(self, leave):
        super().__init__()
        self.linear, self.leave = nn.Linear(4, 4), leave

    def forward(self, x):
        y = self.linear(x)
        self.leave(y)
        return y.relu()


class Finds(nn.Module):
    def __init__(self, find):
        super().__init__()
        self.find = find

    def forward(self, x):
        return x + self.find() * 2


class LeavesInAList(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.linear, self.shared = nn.Linear(4, 4), shared

    def forward(self, x):
        self.shared.clear()
        self.shared.append(self.linear(x))
        return x.relu()


class FindsInAList(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, x):
        return x + self.shared[-1] * 2


class LeavesInAGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        KEPT["x"] = self.linear(x)
        return x.relu()


class FindsInAGlobal(nn.Module):
    def forward(self, x):
        return x + KEPT["x"] * 2


def by_a_shared_list():
    shared = []
    return nn.Sequential(LeavesInAList(shared), FindsInAList(shared))


def by_a_global():
    return nn.Sequential(LeavesInAGlobal(), FindsInAGlobal())


def by_an_object():
    kept = types.SimpleNamespace()
    return nn.Sequential(Leaves(lambda y: setattr(kept, "y", y)), Finds(lambda: kept.y))


class Hooked(nn.Module):
    """As MiDaS and fastai do: a hook keeps what a layer returns, and the forward takes it from there."""

    def __init__(self, is_attribute):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.kept = {}
        kept = self.kept
        self.second.register_forward_hook(
            (lambda _m, _a, output: setattr(self, "last", output))
            if is_attribute
            else (lambda _m, _a, output: kept.__setitem__("x", output))
        )

    def forward(self, x):
        y = self.second(self.first(x))
        found = self.kept["x"] if self.kept else self.last
        return y + found.sum()


MODELS = {
    "a shared list": by_a_shared_list,
    "a global": by_a_global,
    "an object": by_an_object,
    "an attribute that a hook sets": lambda: Hooked(True),
    "a dict that a hook fills": lambda: Hooked(False),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("example", [None, (X,)])
def test_V2_what_is_left_for_another_is_of_this_call(backend, name, is_warm, example):
    model = MODELS[name]().eval()
    if is_warm:
        model(X)
    held = [dict(vars(module)) for module in model.modules()]
    with contextlib.suppress(featuretap.UntraceableModelError):
        extractor = featuretap.create_feature_extractor(
            model, [""], backend=backend, example_args=example
        )
        assert [dict(vars(module)) for module in model.modules()] == held
        for given in (Z, X, Z):
            value = extractor(given)[""]
            assert identical(value, model(given))
        return
    assert backend == "fx"


@pytest.mark.sees_operations
@pytest.mark.parametrize("name", MODELS)
def test_V2_auto_serves_what_is_left_for_another(name):
    model = MODELS[name]().eval()
    model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", featuretap.FallbackWarning)
        extractor = featuretap.create_feature_extractor(model, [""])
    for given in (Z, X):
        assert identical(extractor(given)[""], model(given))


class LooksFirst(nn.Module):
    """Finds nothing in its first call."""

    def __init__(self, is_attribute):
        super().__init__()
        self.linear, self.skip, self.feats = nn.Linear(4, 4), None, {}
        self.linear.register_forward_hook(self.keep if is_attribute else self.fill)

    def keep(self, module, args, output):
        self.skip = output

    def fill(self, module, args, output):
        self.feats["skip"] = output

    def forward(self, x):
        y = self.linear(x)
        if self.skip is not None:
            y = y + self.skip
        if "skip" in self.feats:
            y = y + self.feats["skip"]
        return y * 2


@pytest.mark.parametrize("is_attribute", [True, False])
@pytest.mark.parametrize("example", [None, (X,)])
def test_V2_what_a_hook_leaves_is_found_though_nothing_was_there(backend, is_attribute, example):
    model = LooksFirst(is_attribute).eval()
    with contextlib.suppress(featuretap.UntraceableModelError):
        extractor = featuretap.create_feature_extractor(
            model, ["mul"], backend=backend, example_args=example
        )
        for given in (X, Z):
            assert identical(extractor(given)["mul"], model(given))
        return
    assert backend == "fx"


class ReadsATable(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.table = layer, torch.ones(4)

    def forward(self, x):
        return self.layer(x) + self.table


def logged():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, output: None)
    return layer


@pytest.mark.parametrize(
    "layer", [logged, lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), lambda: nn.Linear(4, 4)]
)
def test_V2_hooks_that_leave_nothing_are_no_reason_to_refuse(extract, layer):
    model = ReadsATable(layer()).eval()
    assert identical(extract(model, ["add"])(X)["add"], model(X))
