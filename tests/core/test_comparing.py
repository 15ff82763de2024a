"""Two values are the same where all that they hold is, and not because nobody can see inside."""

from __future__ import annotations

import functools
import math
import threading
import types
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from featuretap.comparing import identical


class Slotted:
    __slots__ = ("content",)

    def __init__(self, content):
        self.content = content


class Holder:
    def __init__(self, content):
        self.content, self.lock = content, threading.Lock()


def times(factor):
    return lambda x: x * factor


KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
ALIKE = {
    "no numbers": (math.nan, float("nan")),
    "tensors of no numbers": (torch.tensor([math.nan, 1]), torch.tensor([-math.nan, 1])),
    "deques": (deque([torch.ones(2)]), deque([torch.ones(2)])),
    "dtypes": (torch.float32, torch.float32),
    "closures": (times(2), times(2)),
    "slots": (Slotted(1), Slotted(1)),
    "objects with locks": (Holder([1]), Holder([1])),
    "partials": (functools.partial(F.relu, 1), functools.partial(F.relu, 1)),
    "modules": (nn.ReLU(), nn.ReLU()),
}
DIFFERENT = {
    "signs of zeros": (0.0, -0.0),
    **{
        f"zeros, {kind}": (torch.zeros(2, dtype=kind), torch.zeros(2, dtype=kind).neg())
        for kind in KINDS
    },
    "deques": (deque([torch.ones(2)]), deque([torch.zeros(2)])),
    "dtypes": (torch.float32, torch.float64),
    "layouts": (torch.strided, torch.sparse_coo),
    "memory formats": (torch.channels_last, torch.contiguous_format),
    "functions": (F.relu, F.gelu),
    "closures": (times(2), times(3)),
    "slots": (Slotted(1), Slotted(2)),
    "objects with locks": (Holder([1]), Holder([2])),
    "partials": (functools.partial(F.relu, 1), functools.partial(F.relu, 2)),
    "classes": (Slotted, Holder),
    "Python modules": (math, types),
    "sentinels": (object(), object()),
    "modules": (nn.ReLU(), nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("case", ALIKE)
def test_values_that_hold_the_same_are_identical(case):
    assert identical(*ALIKE[case])


@pytest.mark.parametrize("case", DIFFERENT)
def test_values_that_hold_something_else_are_not(case):
    assert not identical(*DIFFERENT[case])


def test_an_object_that_holds_itself_is_compared():
    first, second = Holder(None), Holder(None)
    first.content, second.content = first, second
    assert identical(first, second)


class Applies(nn.Module):
    """Applies what it is given."""

    def forward(self, x, act=None):
        return act(x) if act is not None else x + 1


def test_API_trap37_a_fixed_function_is_no_other_function():
    model, x = Applies(), torch.tensor([-1.0, 2.0])
    fixed = {"act": F.relu}
    extractor = featuretap.create_feature_extractor(model, "", concrete_args=fixed, backend="fx")
    assert torch.equal(extractor(x, F.relu)[""], F.relu(x))
    with pytest.raises(ValueError, match="made for act="):
        extractor(x, F.gelu)
