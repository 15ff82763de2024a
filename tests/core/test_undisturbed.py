"""What :func:`undisturbed` puts back besides what the models of the zoo change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featuretap.keeping.undisturbed import undisturbed


def switch_and_fail(model):
    with undisturbed(model):
        model.weight.requires_grad_(False)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.autocast("cpu", torch.bfloat16).__enter__()
        raise ValueError("half-way")


def test_M5_switches_and_gradient_flags_are_put_back_after_a_failure():
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="half-way"):
        switch_and_fail(model)
    assert model.weight.requires_grad
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert model(torch.ones(2, 4)).dtype == torch.float32
