"""Forwards that change, while they are watched, what a call of a module runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor, get_graph_node_names

X = torch.arange(8.0).reshape(2, 4)


class Doubles(nn.Module):
    def forward(self, x):
        return x * 2


class Fivefold(Doubles):
    def forward(self, x):
        return x * 5


class Rewires(nn.Module):
    """Changes what a call of one of its modules runs, while it is watched."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.part = Doubles()


def of_the_class(self, x):
    y, original = self.part(x), Doubles.forward
    Doubles.forward = lambda module, z: original(module, z) * 3
    try:
        return self.part(y) + 0
    finally:
        Doubles.forward = original


def the_class(self, x):
    self.part.__class__ = Fivefold
    y = self.part(x)
    self.part.__class__ = Doubles
    return y + 0


def of_the_instance(self, x):
    original = self.lin.forward
    self.lin.forward = lambda z: original(z) * 2
    y = self.lin(x)
    del self.lin.forward
    return y + 0


def by_a_global_hook(self, x):
    def hook(module, args, value):
        return value * 2 if module is self.lin else None

    handle = nn.modules.module.register_module_forward_hook(hook)
    y = self.lin(x)
    handle.remove()
    return y + 0


def looks(self, x):
    return self.lin(x) * (2 if "forward" in vars(self.lin) else 1)


@pytest.mark.parametrize("nodes", [["lin", ""], ["part", ""], [""], None])
@pytest.mark.parametrize("function", [of_the_class, the_class, of_the_instance, looks])
def test_V1_a_forward_that_changes_what_a_call_runs_is_followed(function, nodes):
    torch.manual_seed(0)
    model = type("Rewiring", (Rewires,), {"forward": function})().eval()
    names = list(get_graph_node_names(model, example_args=(X,)))
    extractor = create_feature_extractor(
        model, [n for n in nodes if not n or n in names] if nodes else [*names, ""]
    )
    for _ in range(3):
        assert torch.equal(extractor(X)[""], model(X))
        assert all("forward" not in vars(module) for module in model.modules())


def test_V1_a_global_hook_that_the_forward_registers_is_seen_in_every_call():
    model = type("Rewiring", (Rewires,), {"forward": by_a_global_hook})().eval()
    for nodes in (["lin", ""], ["lin", "add"]):
        extractor = create_feature_extractor(model, nodes)
        for _ in range(3):
            assert torch.equal(extractor(X)["lin"], model.lin(X) * 2)


def test_V1_a_forward_behind_getattribute_is_followed():
    class Tripled(nn.Linear):
        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            return (lambda x: value(x) * 3) if name == "forward" else value

    torch.manual_seed(0)
    model = nn.Sequential(Tripled(4, 4), nn.Tanh())
    for nodes in (["0", "1"], ["1", "0.linear"]):
        extractor = create_feature_extractor(model, nodes)
        for _ in range(2):
            assert torch.equal(extractor(X)["1"], model(X))


class CallsALayerTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(self.lin(x)).sin()


def test_N4_a_layer_that_was_exchanged_is_counted_as_the_one_before():
    model = CallsALayerTwice()
    for request in (["lin_1"], ["lin", "lin_1"], ["lin_1", "sin"], ["sin"]):
        extractor = create_feature_extractor(model, request)
        for _ in range(2):
            for _ in range(2):
                features = extractor(X)
                assert list(features) == request
                if "lin_1" in request:
                    assert torch.equal(features["lin_1"], model.lin(model.lin(X)))
            model.lin = nn.Linear(4, 4)


class CountsItsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.kept = [torch.zeros(1)]

    def forward(self, x):
        self.calls.add_(1)
        self.kept[0].add_(1)
        return x + 1


class FailsForNegatives(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Doubles()

    def forward(self, x):
        y = self.part(x) * 2
        if x.sum() < 0:
            raise ValueError("negative")
        return y


def test_M5_what_an_exchanged_layer_keeps_is_put_back_after_a_failure():
    model = FailsForNegatives().eval()
    extractor = create_feature_extractor(model, ["part", "mul", ""])
    for _ in range(2):
        extractor(X)
    model.part = CountsItsCalls()
    for _ in range(2):
        extractor(X)
    with pytest.raises(ValueError, match="negative"):
        extractor(-X)
    assert (model.part.calls, model.part.kept[0]) == (2, 2)
