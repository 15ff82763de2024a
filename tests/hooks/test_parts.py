"""Rule C1: with an example, an extractor has the parameters that its forward uses, and no others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap_hooks
from support import identical

X = torch.linspace(-1, 1, 12).view(1, 3, 4)


class ReadsTheWeightOfAChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.child = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(x, self.child.weight)


def by_a_function(module, x):
    return F.linear(x, module.child.weight)


class ByAFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = ReadsTheWeightOfAChild()

    def forward(self, x):
        return by_a_function(self.part, x)


class Mapped(ByAFunction):
    def forward(self, x):
        return torch.vmap(lambda row: F.linear(row, self.part.child.weight))(x)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def compiled():
    part = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    part.compile(backend="eager")
    return part


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own
@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        (encoder, {}),
        (compiled, {}),
        (ReadsTheWeightOfAChild, {}),
        (ReadsTheWeightOfAChild, {"leaf_modules": [ReadsTheWeightOfAChild]}),
        (ByAFunction, {}),
        (ByAFunction, {"autowrap_functions": [by_a_function]}),
        (Mapped, {}),
    ],
)
def test_C1_what_a_layer_uses_of_its_children_belongs_to_the_extractor(part, chosen):
    model = nn.Sequential(nn.Linear(4, 4), part(), nn.ReLU(), nn.Linear(4, 4)).eval()
    extractor = featuretap_hooks.create_feature_extractor(
        model, ["2"], example_args=(X,), tracer_kwargs=chosen
    )
    extractor(X)["2"].sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    held = dict(extractor.named_parameters())
    assert used
    assert used <= held.keys()
    is_seen = not chosen and part is not Mapped
    assert not is_seen or not any(name.startswith("3.") for name in held)
    assert identical(extractor.double()(X.double())["2"], model[:3](X.double()))
