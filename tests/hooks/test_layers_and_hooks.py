"""Rule M5: layers that are no submodules, and hooks of every kind, are left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import featuretap_hooks

create = featuretap_hooks.create_feature_extractor
names_of = featuretap_hooks.get_graph_node_names


class HoldsLayersInAList(nn.Module):
    """Its layers are no submodules: nobody switches or saves them, and yet they run."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.layers = [nn.BatchNorm1d(4), {"counts": CountsItsCalls()}]

    def forward(self, x):
        return self.layers[1]["counts"](self.layers[0](self.lin(x)))


class CountsItsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_M5_layers_in_a_list_are_left_as_they_were():
    model, x = HoldsLayersInAList(), torch.ones(2, 4)
    model(x)
    norm, counts = model.layers[0], model.layers[1]["counts"]
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    names_of(model, example_args=(x,))
    extractor = create(model, [""], example_args=(x,))
    assert counts.calls == 1
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model.eval()
    twin = copy.deepcopy(model)
    assert torch.equal(extractor(x)[""], twin(x))


def registers_a_backward_hook(self, x):
    self.lin.register_full_backward_hook(lambda *_: None)
    return self.lin(x)


def registers_a_hook_for_the_state(self, x):
    self.lin.register_state_dict_pre_hook(lambda *_: None)
    return self.lin(x)


def registers_a_hook_of_a_weight(self, x):
    self.lin.weight.register_hook(lambda grad: grad)
    return self.lin(x)


@pytest.mark.parametrize(
    "step",
    [
        registers_a_backward_hook,
        registers_a_hook_for_the_state,
        registers_a_hook_of_a_weight,
    ],
)
def test_M5_hooks_that_a_call_that_fails_has_registered_are_gone(step):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(step(self, x)[:, : x.shape[0]])

    model = Fails()
    extractor = create(model, ["", "lin"])
    for x in (torch.ones(4, 4), torch.ones(2, 4)):
        before = hooks_of(model.lin)
        if len(x) == 2:
            with pytest.raises(RuntimeError, match="shapes"):
                extractor(x)
            assert hooks_of(model.lin) == before
        else:
            extractor(x)


def hooks_of(module):
    weight = module.weight
    registries = [kept for name, kept in vars(module).items() if name.endswith("_hooks")]
    return [len(kept) for kept in registries], len(weight._backward_hooks or ())
