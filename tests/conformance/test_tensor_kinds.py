"""Rules V1 and C2: tensors of other kinds as inputs."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from support import identical


def of_a_layer(self, x):
    return self.lin(x).relu()


def made_plain(self, x):
    return self.lin((x * 2).to_tensor(0.0)).relu()


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def nested(layout):
    parts = [torch.randn(3, 4), torch.randn(2, 4)]
    # The other layout, and the argument, are there since torch 2.1.
    kind = {} if layout is torch.strided else {"layout": layout}
    return torch.nested.nested_tensor(parts, **kind)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("layout", ["strided", "jagged"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_C2_nested_tensors_go_through_any_model(extract, layout, with_example, on_the_cpu):
    if layout == "jagged" and not hasattr(torch, "jagged"):
        pytest.skip("jagged tensors are there since torch 2.1")
    x, model = nested(getattr(torch, layout)), Net(of_a_layer).eval()
    with torch.no_grad():
        extractor = extract(model, ["lin", "relu"], example_args=(x,) if with_example else None)
        features, expected = extractor(x), model(x)
    for mine, real in zip(features["relu"].unbind(), expected.unbind(), strict=True):
        assert identical(mine, real)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors is in prototype")
@pytest.mark.only("hooks", why="what fx records is not told that an input is masked")
def test_C2_masked_tensors_go_through_hooks(extract, with_example, on_the_cpu):
    data = torch.randn(2, 4)
    x, model = torch.masked.masked_tensor(data, data > 0), Net(made_plain).eval()
    extractor = extract(model, ["lin", "relu"], example_args=(x,) if with_example else None)
    assert identical(extractor(x)["relu"], model(x))


class Dispatches(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    @functools.singledispatchmethod
    def forward(self, x):
        raise TypeError(type(x))

    @forward.register
    def _of_a_tensor(self, x: torch.Tensor):
        return self.lin(x)


def test_N2_a_forward_that_dispatches_on_its_argument_takes_no_self(extract, names_of):
    model, x = Dispatches(), torch.randn(2, 4)
    assert list(names_of(model, example_args=(x,))) == ["x", "lin"]
    features = extract(model, ["x", "lin"])(x)
    assert identical(features["x"], x)
    assert identical(features["lin"], model(x))


def test_M5_what_torch_func_refuses_to_write_is_an_error_as_without_us(extract):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), torch.randn(3, 4)
    extractor = extract(model, ["0", "1"])
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        torch.func.grad(lambda value: extractor(value)["1"].sum())(x)
    assert identical(dict(model.state_dict()), kept)
    assert identical(extractor(x)["0"], model[0](x))
