"""Rules V1, V4, N1: features inside of objects that are no tuple, list or dict."""

from __future__ import annotations

import collections
import types

import pytest
import torch
from torch import nn

import featuretap
from support import identical
from zoo import linear

X = torch.ones(1, 4)
HOOKS_ONLY = pytest.mark.only("hooks", why="no graph can return such an object")


class Instances:
    def __init__(self, boxes):
        self.boxes = boxes
        self.parent = self


class Slots:
    __slots__ = ("boxes",)

    def __init__(self, boxes):
        self.boxes = boxes


class Private:
    __slots__ = ("__boxes",)

    def __init__(self, boxes):
        self.__boxes = boxes

    @property
    def boxes(self):
        return self.__boxes


class Boxes(list):
    pass


class Argument:
    """Cannot be made without its argument."""

    def __new__(cls, boxes):
        new = object.__new__(cls)
        new.boxes = boxes
        return new


class Anything(Instances):
    """Has every attribute, and cannot be copied."""

    def __getattr__(self, name):
        return 42

    def __copy__(self):
        raise RuntimeError("no copy")


class Refuses(list):
    def append(self, item):
        raise RuntimeError("no more")


# How a value is put into the object, and read from it.
KINDS = {
    "object": (Instances, lambda found: found.boxes),
    "argument": (Argument, lambda found: found.boxes),
    "anything": (Anything, lambda found: found.boxes),
    "refuses": (lambda y: Refuses([y]), lambda found: found[0]),
    "slots": (Slots, lambda found: found.boxes),
    "private slots": (Private, lambda found: found.boxes),
    "namespace": (lambda y: types.SimpleNamespace(boxes=y), lambda found: found.boxes),
    "deque": (lambda y: collections.deque([y], maxlen=2), lambda found: found[0]),
    "set": (lambda y: {y}, lambda found: next(iter(found))),
    "list": (lambda y: Boxes([y]), lambda found: found[0]),
    "UserDict": (lambda y: collections.UserDict(boxes=y), lambda found: found["boxes"]),
    "defaultdict": (
        lambda y: collections.defaultdict(list, boxes=y),
        lambda found: found["boxes"],
    ),
}


class Wraps(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.lin, self.wrap = linear(1), wrap

    def forward(self, x):
        return self.wrap(self.lin(x))


class Detects(nn.Module):
    """Overwrites what a module of its own returned in an object."""

    def __init__(self, kind):
        super().__init__()
        wrap, self.read = KINDS[kind]
        self.head, self.out = Wraps(wrap), linear(2)

    def forward(self, x):
        found = self.head(x)
        self.read(found).clamp_(0, 0.01)
        return self.out(self.read(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("example", [(), (X,)])
@HOOKS_ONLY
@torch.no_grad()
def test_V1_a_feature_in_an_object_is_not_overwritten(extract, kind, example):
    model = Detects(kind).eval()
    extractor = extract(model, ["head", "out"], example_args=example or None)
    for _ in range(3):
        feature = extractor(X)["head"]
        assert type(feature) is type(KINDS[kind][0](X))
        assert identical(KINDS[kind][1](feature), model.head.lin(X))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, x, cache):
        cache.keys.append(x)
        cache.count += 1
        return x + 1, cache


class Steps(nn.Module):
    """Its layers fill an object in which there is no tensor before."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(width=4)
        self.first = Begins(self.config)
        self.second = Layer(self.config)

    def forward(self, x):
        return self.second(*self.first(x))[0]


class Begins(Layer):
    def forward(self, x):
        return x * 2, types.SimpleNamespace(keys=[], count=0, config=self.config)


@HOOKS_ONLY
@pytest.mark.parametrize("example", [None, (X,)], ids=["", "example"])
def test_V1_nor_is_an_object_that_holds_no_tensor_yet(extract, example):
    model = Steps()
    extractor = extract(model, ["first", "second", "second.add"], example_args=example)
    for _ in range(2):
        features = extractor(X)
        first, second = features["first"][1], features["second"][1]
        assert (first.keys, first.count) == ([], 0)
        assert (len(second.keys), second.count) == (1, 1)
        # What the model keeps is no value of this forward.
        assert first.config is model.config


@HOOKS_ONLY
def test_N1_what_is_made_of_a_tensor_in_an_object_is_a_node(names_of):
    model = Detects("object").eval()
    options = {"tracer_kwargs": {"leaf_modules": [Wraps]}, "example_args": (X,)}
    assert list(names_of(model, **options).eval) == ["x", "head", "clamp_", "out"]


@pytest.mark.only("fx", why="hooks return the real object")
def test_E2_a_feature_that_is_a_defaultdict_is_refused(extract):
    with pytest.raises(featuretap.UntraceableModelError, match="returns a defaultdict"):
        extract(Wraps(KINDS["defaultdict"][0]), "")


class Cache:
    """Equal to itself alone, as objects are."""


class ReturnsACache(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        return self.lin(x if x.sum() < 1e9 else -x), Cache()


class Differs(nn.Module):
    """Hands its part something else than a trace sees."""

    def __init__(self):
        super().__init__()
        self.part = ReturnsACache()

    def forward(self, x):
        return self.part(x * 3 if x.contiguous() is x else x)


@pytest.mark.sees_operations
def test_V4_a_feature_with_an_object_inside_is_compared(extract, backend):
    model = Differs().eval()
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="first node that differs"):
            extract(model, "part", example_args=(X,))
        wrong = extract(model, "part")
        assert not featuretap.verify(wrong, model, X).equal
        return
    extractor = extract(model, "part", example_args=(X,))
    assert identical(extractor(X)["part"][0], model(X)[0])
    assert featuretap.verify(extractor, model, X).equal


class Fills(nn.Module):
    def forward(self, x):
        return x * x.new_empty(64, 4).bernoulli_(0.5)[:1]


@pytest.mark.sees_operations
def test_V4_memory_that_nobody_has_written_is_not_compared(extract):
    model = Fills().eval()
    for _ in range(20):
        _ = torch.randn(64, 4)  # memory for the next tensor to find
        extractor = extract(model, "*", example_args=(X,))
        report = featuretap.verify(extractor, model, X)
        assert [check.equal for check in report if check.node == "new_empty"] == [None]
        assert report.equal
