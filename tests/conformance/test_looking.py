"""Rule M5: what lies beside a model is left alone: looked at without a question, and not read through."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from torch import nn

from featuretap import get_graph_node_names
from support import drawn, identical


class Trainer:
    """Something that refers to its model, and is gone before it."""


class Unready:
    """Settings that are not there yet."""

    @property
    def __class__(self):
        raise RuntimeError("not configured")


class Loads:
    """Settings that are loaded at the first look."""

    def __getattr__(self, name):
        raise RuntimeError(f"not configured: {name}")


class Deprecated:
    """What warns whoever asks anything of it."""

    def __getattribute__(self, name):
        warnings.warn("deprecated", FutureWarning, stacklevel=2)
        return super().__getattribute__(name)


def gone():
    return weakref.proxy(Trainer())


LEFT_ALONE = gone()
DEPRECATED = Deprecated()


class Owned(nn.Module):
    def __init__(self, owner):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        vars(self)["owner"] = owner  # torch asks of what class it is

    def forward(self, x):
        if self.owner is LEFT_ALONE or self.owner is DEPRECATED:
            x = x + 1
        return self.lin(x) + 1


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one], lambda one: {"a": (one,)}])
@pytest.mark.parametrize("make", [gone, Unready, Loads, Deprecated])
def test_M5_what_cannot_be_looked_at_is_left_alone(backend, extract, make, wrap):
    torch.manual_seed(0)
    model, x = Owned(wrap(make())), drawn(2, 4)
    names = get_graph_node_names(model, backend=backend, example_args=(x,))
    assert list(names) == ["x", "lin", "add"]
    extractor = extract(model, ["lin", "add"])
    for _ in range(3):
        assert identical(extractor(x)["add"], model(x))


def test_N1_an_assertion_of_a_constant_is_no_node(backend, extract):
    class Asserts(nn.Module):
        def forward(self, x):
            torch._assert(1 + 1 == 2, "a constant")
            torch._assert(x.dim() == 2, f"a size, {x.shape}")
            torch._assert(x.sum() > -1e9, "a value")
            is_long, is_wide = x.shape[0] > 1, x.shape[1] > 1
            y = x + 1
            torch._assert(is_long, "the answer of before")
            torch._assert(is_wide, "another")
            torch._assert(1 + 1 == 2, "a constant")
            return y

    model, x = Asserts(), drawn(2, 4)
    names = get_graph_node_names(model, backend=backend, example_args=(x,))
    asserted = [*["x", "dim", "eq", "getattr", "_assert"], *["sum", "gt", "_assert_1"]]
    asserted += ["getattr_1", "getitem", "gt_1", "getattr_2", "getitem_1", "gt_2"]
    asserted += ["add", "_assert_2", "_assert_3"]
    assert list(names) == asserted
    assert identical(extract(model, "")(x)[""], model(x))
