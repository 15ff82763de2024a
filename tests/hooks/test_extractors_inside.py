"""Extractors of hooks inside of models that are watched themselves."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import identical

create = featuretap_hooks.create_feature_extractor

X = torch.arange(8.0).view(2, 4)


class HoldsAnExtractor(nn.Module):
    """Its child has a model inside that is no child of it."""

    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ReLU())
        self.extractor = create(inner, None, ["0"], ["0", "1"], example_args=(X,))

    def forward(self, x):
        return sum(self.extractor(x).values())


@pytest.mark.parametrize("chosen", ["fx", "hooks", "auto"])
@pytest.mark.parametrize("example", [None, (X,)])
def test_M5_listing_leaves_the_mode_of_an_extractor_inside(chosen, example):
    model = HoldsAnExtractor().eval()
    inner = model.extractor._model
    expected = model(X)
    with contextlib.suppress(featuretap.UntraceableModelError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        featuretap.get_graph_node_names(model, backend=chosen, example_args=example)
    assert not any(part.training for part in (*model.modules(), *inner.modules()))
    assert identical(model(X), expected)


def test_E2_fx_says_that_an_extractor_of_hooks_cannot_be_traced():
    extractor = HoldsAnExtractor().extractor
    reason = "an extractor of hooks watches a real forward, and a trace is none"
    with pytest.raises(featuretap.NodeNotFoundError, match=reason):
        featuretap.create_feature_extractor(nn.Sequential(extractor), ["0.0"], backend="fx")
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        featuretap.create_feature_extractor(extractor, ["0"], backend="fx")


class HoldsTwo(nn.Module):
    """Two extractors of one model, which may be its child as well."""

    def __init__(self, base, *, is_child):
        super().__init__()
        self.first = create(base, ["0"])
        self.second = create(base, ["mul", "2"])
        if is_child:
            self.base = base

    def forward(self, x):
        second = self.second(x)
        y = self.first(x)["0"] + second["mul"]
        return y - (self.base(x) if hasattr(self, "base") else second["2"])


class Multiplies(nn.Sequential):
    """Has an operation between its children."""

    def forward(self, x):
        return self[2](self[1](self[0](x)) * 3)


@pytest.mark.parametrize("is_child", [False, True])
@pytest.mark.parametrize("example", [None, (X,)])
def test_M6_V1_two_extractors_of_one_model_inside_of_another(is_child, example):
    base = Multiplies(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model = HoldsTwo(base, is_child=is_child)
    extractor = create(model, ["add", "sub", "first", "second", ""], example_args=example)
    for _ in range(2):
        features = extractor(X)
        assert identical(features["first"], model.first(X))
        assert identical(features["second"], model.second(X))
        assert identical(features["add"], base[0](X) + base[1](base[0](X)) * 3)
        assert identical(features[""], model(X))
        assert identical(features["sub"], features[""])


class Overwrites(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.lin(x) + 1
        z = self.lin(y)
        self.act(y)
        return z + y


def test_V1_an_extractor_learns_what_is_overwritten_from_calls_of_its_own():
    """That of another, which watches it, may end before anything is overwritten."""
    model, calls = Overwrites(), []
    extractor = create(model, ["add", "add_1"])
    outer, expected = create(extractor, ["add"]), model.lin(X) + 1
    assert identical(outer(X)["add"], expected)
    model.act.register_forward_hook(lambda *_: calls.append(1))
    assert identical(extractor(X)["add"], expected)
    assert len(calls) == 1
    assert identical(outer(X)["add"], expected)
