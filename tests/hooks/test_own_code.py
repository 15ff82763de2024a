"""What the code of a model may change, and so must be copied before each of its forwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor
from featuretap_hooks.inspecting.own_code import own_code
from support import snapshot


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.sizes = nn.Conv2d(1, 1, 1), (1, (2, 3))

    def forward(self, x):
        sizes = [1, 2]
        sizes[0] = x.shape[0]
        return self.lin(x)


class Holds(Plain):
    def __init__(self):
        super().__init__()
        self.log = ([],)


class Sets(Plain):
    def forward(self, x):
        self.last = 1
        return super().forward(x)


class SetsElsewhere(Plain):
    def forward(self, x):
        self.lin.last = 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "stored"),
    [(Plain, []), (Holds, [Holds]), (Sets, [Sets]), (SetsElsewhere, [SetsElsewhere, nn.Conv2d])],
)
def test_M5_only_modules_that_a_forward_may_change_are_copied_before_it(kind, stored):
    modules = list(kind().modules())
    assert [type(module) for module in own_code(modules).storing(modules)] == stored


class FailsLater(Holds):
    def forward(self, x):
        self.log[0].append(x)
        if len(self.log[0]) > 2:
            raise ValueError("full")
        return super().forward(x)


def test_M5_what_a_failing_forward_put_into_a_container_is_taken_out():
    model, x = FailsLater().eval(), torch.ones(1, 1, 2, 2)
    extractor = create_feature_extractor(model, ["lin"])
    extractor(x)
    extractor(x)
    before = snapshot(model)
    with pytest.raises(ValueError, match="full"):
        extractor(x)
    assert snapshot(model) == before
