"""Rules N8, N9, M5: functions that cache what they compute of sizes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import featuretap_hooks
from support import identical

X = torch.arange(8.0).view(2, 4)


@functools.lru_cache
def half(n):
    return n // 2


def calls_another(n):
    return half(n)


@functools.lru_cache
def pair(n):
    return n, n


class ByAFunction(nn.Module):
    def forward(self, x):
        n = half(x.shape[1])
        return (x[:, :n] // 2) * n


class ByAFunctionInside(nn.Module):
    def forward(self, x):
        n = calls_another(x.shape[1])
        return (x[:, :n] // 2) * n


class ByAMethod(nn.Module):
    @functools.lru_cache  # noqa: B019
    def half(self, n):
        return n // 2

    def forward(self, x):
        n = self.half(x.shape[1])
        return (x[:, :n] // 2) * n


@pytest.mark.parametrize("kind", [ByAFunction, ByAFunctionInside, ByAMethod])
@pytest.mark.parametrize("example", [None, (X,)])
def test_N8_N9_a_name_means_the_same_in_each_call_though_a_function_caches(kind, example):
    model = kind()
    names = ["floordiv", "mul", "floordiv_1"]
    expected = {"floordiv": 2, "floordiv_1": X[:, :2] // 2, "mul": (X[:, :2] // 2) * 2}
    extractor = featuretap_hooks.create_feature_extractor(model, names, example_args=example)
    for _ in range(3):
        features = extractor(X)
        assert all(identical(features[name], value) for name, value in expected.items())
        assert identical(model(X), expected["mul"])


class KeepsAPair(nn.Module):
    def forward(self, x):
        first, _ = pair(x.shape[1])
        self.kind = type(first)
        return x * first


def test_M5_no_size_that_is_watched_is_left_in_a_cache():
    pair.cache_clear()
    model = KeepsAPair()
    featuretap_hooks.create_feature_extractor(model, ["mul"])(X)
    model(X)
    assert model.kind is int


class NotInstalled:
    """Stands for a library that is not there, and says so whatever is asked."""

    def __getattr__(self, name):
        raise ImportError(f"{name} is of a library that is not installed")


library = NotInstalled()


class MentionsALibrary(nn.Module):
    def forward(self, x, fast=False):
        return library.multiply(x, 2) if fast else x * 2


def test_API_a_library_that_is_not_installed_may_be_mentioned():
    model = MentionsALibrary()
    assert "mul" in featuretap_hooks.get_graph_node_names(model, example_args=(X,))
    extractor = featuretap_hooks.create_feature_extractor(model, ["mul"])
    assert identical(extractor(X)["mul"], X * 2)
