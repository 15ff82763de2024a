"""Rule M5: an interrupt that comes while a forward is cleaned up leaves nothing behind, either."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from featuretap_hooks import create_feature_extractor, plain_runs, scopes
from featuretap_hooks.calls import module_hooks

X = torch.ones(2, 4)
MODES = torch._C._len_torch_function_stack()  # a default device is one


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.block(x) + 1


def interrupted(monkeypatch, owner, name, after):
    """Have the first call of a function interrupted, before or after it does its work."""
    original, calls = getattr(owner, name), []

    def interrupt(*args, **kwargs):
        calls.append(args)
        value = original(*args, **kwargs) if after or len(calls) > 1 else None
        if len(calls) == 1:
            raise KeyboardInterrupt
        return value

    monkeypatch.setattr(owner, name, interrupt)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (module_hooks.ModuleHooks, "_take_off"),
        (module_hooks.ModuleHooks, "close"),
        (scopes.Scopes, "finish"),
        (scopes, "push_mode"),
        (scopes, "pop_mode"),
    ],
)
def test_M5_an_interrupt_of_what_cleans_up(monkeypatch, owner, name, after):
    model = Adds().eval()
    attributes = [sorted(vars(module)) for module in model.modules()]
    for early_stop in (True, False):
        one = create_feature_extractor(model, ["block.0", "add"], early_stop=early_stop)
        one(X)
        with monkeypatch.context() as patch:
            interrupted(patch, owner, name, after)
            with contextlib.suppress(KeyboardInterrupt):
                one(X)
        assert torch._C._len_torch_function_stack() == MODES
        assert [sorted(vars(module)) for module in model.modules()] == attributes
        assert not any(module._forward_hooks for module in model.modules())
        assert torch.equal(one(X)["add"], model(X))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["add_hooks", "remove_hooks", "_take_off"])
def test_M5_an_interrupt_of_plain_hooks(monkeypatch, name, after):
    model = Adds().eval()
    for early_stop in (True, False):
        extractor = create_feature_extractor(model, ["block.0", "block"], early_stop=early_stop)
        for _ in range(2):
            extractor(X)
        with monkeypatch.context() as patch:
            interrupted(patch, plain_runs, name, after)
            with pytest.raises(KeyboardInterrupt):
                extractor(X)
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_hooks_always_called
        assert torch.equal(extractor(X)["block"], model.block(X))
