"""Rules N1 and N9: tensors that the forward makes of no input, and then writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support import identical, with_forward


def model_of(function):
    return with_forward(function, kept=torch.tensor([0.0, 1.0, 0.0, 2.0]))


def through_a_slice(self, x):
    made = torch.zeros_like(self.kept)
    made[:2].add_(x[:2])
    return made * 2 + made.view(2, 2).sum()


def before_the_view_is_used(self, x):
    made = torch.zeros_like(self.kept)
    view = made[1:]
    made[:3] = x[:3]
    return view * 2


def by_out(self, x):
    made = torch.zeros_like(self.kept)
    torch.add(x[:2], 1, out=made[2:])
    return made.exp()


def a_buffer(self, x):
    self.kept.view(2, 2)[0].copy_(x[:2])
    return self.kept + 1


def in_two_scopes(self, x):
    made = torch.zeros_like(self.kept)
    self.scope(made[:2], x)
    return made.exp()


VIEWS = [
    (through_a_slice, ["getitem", "add_", "mul", "view", "sum", "add"]),
    (before_the_view_is_used, ["getitem", "mul"]),
    (by_out, ["getitem", "add", "exp"]),
    (a_buffer, ["getitem", "copy_", "add"]),
    (in_two_scopes, ["scope.getitem", "scope.mul_", "scope.add_", "exp"]),
]


class Scope(nn.Module):
    def forward(self, view, x):
        view.mul_(2).add_(x[:2])


def all_its_parts(self, x):
    made = torch.zeros_like(self.kept)
    made += x
    first, *_ = made.unbind()
    made *= made.shape[0]
    return made.add_(first * 2).view(made.shape)


def sizes_before_parameters(self, x):
    return self.weight.view(x.shape) + x


EVERYWHERE = [
    (all_its_parts, ["add", "unbind", *["getitem", "getitem_1", "getitem_2", "getitem_3"]]),
    (sizes_before_parameters, ["getattr", "weight", "view", "add"]),
]


@pytest.mark.parametrize(("function", "expected"), EVERYWHERE, ids=["parts", "order"])
def test_N9_what_is_at_hand_has_the_same_nodes_everywhere(names_of, extract, function, expected):
    model, x = model_of(function), torch.arange(1.0, 5)
    model.weight = nn.Parameter(torch.ones(4))
    names = names_of(model, example_args=(x,))
    assert names[1 : len(expected) + 1] == expected
    assert identical(extract(model, names)(x)[names[-1]], model(x))


@pytest.mark.parametrize(
    ("function", "expected"), VIEWS, ids=[function.__name__ for function, _ in VIEWS]
)
def test_N1_what_is_computed_of_memory_that_was_written_through_a_view_is_a_node(
    names_of, extract, function, expected
):
    model, x = model_of(function), torch.arange(1.0, 5)
    model.scope = Scope()
    if function is in_two_scopes:
        # Writing a number into it changes nothing: nothing of it depends on the input yet.
        expected = [name for name in expected if name != "scope.mul_"]
    names = names_of(model, example_args=(x,))
    assert names == ["x", *expected]
    last = names[-1]
    for request in ([last], names, [*names, ""]):
        features = extract(model, request)
        for inputs in (x, x + 3, x):
            assert identical(features(inputs)[last], model(inputs))
