"""Sizes and tuples that remember where they came from pass for plain ones, and do not stay."""

from __future__ import annotations

import collections
import copy
import json
import pickle

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from featuretap_hooks.tracked import Tracked

X = torch.ones(2, 4)


class Asserts(nn.Module):
    def forward(self, x):
        torch._assert(x.ndim == 2, f"got {x.ndim}D")
        return x.T * 2


class Formats(nn.Module):
    def forward(self, x):
        print(f"{x.shape} {x.dtype} {x.is_cuda!s}")
        return x + 1


class Texts(nn.Module):
    def forward(self, x):
        print(str(x.shape) + repr(x.ndim))
        return x + 1


class Compares(nn.Module):
    def forward(self, x):
        torch._assert(x.shape == (2, 4), "no")
        return x * 2


class Computes(nn.Module):
    def forward(self, x):
        y = x.view(x.shape + (1,)).view(x.shape[:1] + (4,))  # noqa: RUF005
        return y.repeat(x.shape * 1) + x.shape.count(2)


@pytest.mark.parametrize("kind", [Asserts, Formats, Texts, Compares, Computes])
def test_N9_an_attribute_that_is_put_into_a_text_or_compared_is_a_node_as_in_fx(kind):
    names = featuretap_hooks.get_graph_node_names(kind(), example_args=(X,))
    assert names == featuretap.get_graph_node_names(kind(), backend="fx")


def test_N9_the_names_of_an_assert_with_a_text():
    assert featuretap_hooks.get_graph_node_names(Asserts(), example_args=(X,)) == [
        *["x", "getattr", "eq", "getattr_1", "_assert", "getattr_2", "mul"]
    ]


def test_V2_the_text_of_an_attribute_is_that_of_the_plain_value(capsys):
    featuretap_hooks.create_feature_extractor(Formats(), "add")(X)
    assert capsys.readouterr().out == f"torch.Size([2, 4]) torch.float32 {X.is_cuda}\n"
    featuretap_hooks.create_feature_extractor(Texts(), "add")(X)
    assert capsys.readouterr().out == "torch.Size([2, 4])2\n"


def test_N1_a_size_as_the_key_of_a_dict_is_compared_in_silence():
    class Keys(nn.Module):
        def forward(self, x):
            found = {}
            for _ in range(2):
                found[x.shape] = found[x.shape[0]] = 1
            return x * 2

    names = featuretap_hooks.get_graph_node_names(Keys(), example_args=(X,))
    assert not [name for name in names if name.startswith("eq")]


class Looks(nn.Module):
    """Looks at what sizes and numbers are."""

    def forward(self, x):
        size, shape, number = x.shape[0], x.shape, x.sum().item()
        self.seen = {
            "classes": (isinstance(shape, torch.Size), size.__class__, number.__class__),
            "equal": (shape == (2, 4), shape == torch.Size((2, 4)), size == 2, size != 3),
            "hashes": (hash(size), hash(shape)),
            "texts": (str(shape), repr(shape), f"{shape}", f"{size:03d}", "%s %d" % (size, 2)),  # noqa: UP031
            "json": (json.dumps([size, number, shape]), json.dumps({"a": shape}, indent=1)),
            "pickle": pickle.dumps(shape),
            "loaded": (type(pickle.loads(pickle.dumps(size))), type(copy.copy(shape))),
            "named": type(pickle.loads(pickle.dumps(x.max(0)))),
        }
        return x * 2


def test_V2_tracked_values_pass_for_the_plain_ones():
    model, watched = Looks(), Looks()
    model(X)
    featuretap_hooks.create_feature_extractor(watched, "mul")(X)
    assert watched.seen == model.seen


class Stores(nn.Module):
    """Puts sizes away, wherever it can."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(4, 4)
        self.dict, self.list, self.set = {}, [], set()
        self.deque, self.object = collections.deque(maxlen=2), collections.Counter()
        self.helper = type("Helper", (), {})()

    def forward(self, x):
        size = x.shape[0]
        self.last, self.number, self.item = x.shape, size, x.sum().item()
        self.dict[x.shape] = 1
        self.list.append(size)
        self.set.add(size)
        self.deque.append(size)
        self.object[size] += size
        self.child.size = size
        self.helper.sizes = (size, [size])
        self.nested = {"a": [(size, {size: frozenset([size])})]}
        return self.child(x) * 2


def tracked_in(value):
    if issubclass(type(value), Tracked):
        yield value
    elif isinstance(value, dict):
        yield from tracked_in([*value, *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        for item in value:
            yield from tracked_in(item)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from tracked_in(vars(value))


@pytest.mark.parametrize("request_", [["mul"], ["child", "mul"]])
def test_M5_what_a_model_puts_away_is_plain_after_a_call(request_):
    model, plain = Stores(), Stores()
    containers = (model.dict, model.list, model.set, model.deque, model.helper)
    extractor = featuretap_hooks.create_feature_extractor(model, request_)
    for _ in range(2):
        extractor(X)
        plain(X)
        for module in model.modules():
            assert not list(tracked_in(vars(module)))
    assert all(
        now is before
        for now, before in zip(
            (model.dict, model.list, model.set, model.deque, model.helper), containers, strict=True
        )
    )
    for name in "last number item dict list set deque object nested".split():
        assert getattr(model, name) == getattr(plain, name)
        assert repr(getattr(model, name)) == repr(getattr(plain, name))
    assert vars(model.helper) == vars(plain.helper)
