"""Rules N1, N3, N9: a dtype that the code spells out is a constant, whatever was read before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from support import drawn, identical, with_forward

FLOAT = torch.float32


def makes_a_constant(self, x):
    kind = x.dtype
    fixed = torch.arange(4, dtype=torch.float32)
    read = torch.arange(4, 8, dtype=kind)
    return x + fixed + read


def names_a_global(self, x):
    kind = x.dtype
    return (x.cumsum(1, dtype=FLOAT).T * 2).to(kind)


def converts_and_back(self, x):
    kind = x.dtype
    x = x.to(torch.float32)
    return (x + x.mT).to(kind)


def calls_a_function_of_torch(self, x):
    kind = x.dtype
    return torch.softmax(x, 1, dtype=torch.float32).T.to(kind)


def nests_the_calls(self, x):
    kind = x.dtype
    return torch.add(x.T.to(torch.float32), x).to(kind)


def looks_inside_of_the_arguments(self, x):
    y = x.cumsum(1).T
    kind = y.to(y.to(torch.float32).dtype).dtype
    return y.to(kind)


def names_a_layout(self, x):
    kind = x.layout
    zeros = torch.zeros_like(x, layout=torch.strided).T
    return zeros + torch.ones_like(x, layout=kind)


def gives_all_at_once(self, x):
    kind, more = x.dtype, {"dtype": torch.float32}
    return torch.arange(4, **more) + x.T.to(kind)


# name -> its value, which is another where the constant is taken for what was read.
CASES = {
    makes_a_constant: ("arange", lambda x: torch.arange(4, 8, dtype=x.dtype)),
    names_a_global: ("getattr", lambda x: x.cumsum(1).T),
    converts_and_back: ("getattr", lambda x: x.mT),
    calls_a_function_of_torch: ("getattr", lambda x: torch.softmax(x, 1).T),
    nests_the_calls: ("getattr", lambda x: x.T),
    looks_inside_of_the_arguments: ("getattr_1", lambda x: x.dtype),
}


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_n1_a_dtype_that_is_spelled_out_is_a_constant(names_of, extract, forward):
    model, x = with_forward(forward).eval(), drawn(4, 4)
    name, value = CASES[forward]
    assert name in names_of(model, example_args=(x,))
    assert identical(extract(model, [name])(x)[name], value(x))


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_n8_the_names_do_not_depend_on_the_dtype_of_the_input(names_of, forward):
    model = with_forward(forward).eval()
    names = [names_of(model, example_args=(drawn(4, 4).to(k),)) for k in (FLOAT, torch.float64)]
    assert names[0] == names[1]


@pytest.mark.only("hooks", why="torch 2.0 takes no stand-in for a layout, so that fx refuses there")
def test_n1_a_layout_that_is_spelled_out_is_a_constant(names_of, extract):
    model, x = with_forward(names_a_layout).eval(), drawn(4, 4)
    assert names_of(model, example_args=(x,))[:3] == ["x", "zeros_like", "getattr"]
    assert identical(extract(model, ["getattr"])(x)["getattr"], torch.zeros_like(x).T)


class GivesItsBufferBack(nn.Module):
    """``to`` returns the buffer itself where it has that dtype already."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x):
        x = x - self.mean.to(x.dtype)
        weight = self.mean * 2
        return x * weight


@pytest.mark.parametrize("example", [False, True])
def test_N1_N8_a_buffer_that_an_operation_gives_back_does_not_depend_on_the_input(
    extract, names_of, example
):
    model, x = GivesItsBufferBack(), torch.arange(8.0).view(2, 4)
    assert list(names_of(model, example_args=(x,))) == ["x", "getattr", "to", "sub", "mul"]
    extractor = extract(model, ["to", "mul"], example_args=(x,) if example else None)
    for dtype in (torch.float32, torch.float64, torch.float32):
        features = extractor(x.to(dtype))
        assert identical(features["to"], torch.ones(4, dtype=dtype))
        assert identical(features["mul"], model(x.to(dtype)))
    model.mean.add_(1)
    assert identical(features["to"], torch.ones(4))
