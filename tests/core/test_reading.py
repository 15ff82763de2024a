"""Code that is read: the model's own, and of each library some."""

from __future__ import annotations

from collections import Counter

import hypothesis
from torch import nn

from featuretap.inspecting.reading import forward_of, functions_of


def helper(x):
    return another(x) + 1


def another(x):
    return x * 2


class Explores(nn.Module):
    """Names a library that has nothing to do with it, where it may show what it does."""

    shows = False

    def forward(self, x):
        if self.shows:
            hypothesis.given(x).example().find().map().filter()
            hypothesis.settings().register_profile().load_profile()
        return helper(x)


def test_C3_a_library_is_not_read_through():
    functions = functions_of(forward_of(Explores()))
    tops = Counter(function.__module__.partition(".")[0] for function in functions)
    assert 0 < tops["hypothesis"] <= 64
    assert {helper, another} <= set(functions)
