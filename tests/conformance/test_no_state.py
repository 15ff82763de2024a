"""Rules V2, E2: what a forward keeps, and sets again before it reads it, is no state."""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F

import featuretap
from stateful import counts, net

FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")


@FX_ONLY
def test_V2_a_cache_of_what_is_made_of_parameters_is_recorded(extract):
    def function(self, x):
        if "weight" not in self.cache:
            self.cache["weight"] = self.lin.weight * 2
        return F.linear(x, self.cache["weight"])

    model, x = net(function), torch.ones(3, 4)
    extractor = extract(model, "")
    assert torch.equal(extractor(x)[""], copy.deepcopy(model)(x))
    with torch.no_grad():
        model.lin.weight.mul_(3)
    assert torch.equal(extractor(x)[""], model(x))


@FX_ONLY
def test_E2_V2_a_forward_of_the_instances_own_is_read_as_well(extract):
    model = net(follows_the_device)
    model.forward = types.MethodType(counts, model)
    with pytest.raises(featuretap.UntraceableModelError, match=r"changes \.count"):
        extract(model, "")
    del model.forward
    assert extract(model, "")(torch.ones(3, 4))[""].shape == (3, 4)
    type(model).forward = counts
    with pytest.raises(featuretap.UntraceableModelError, match=r"changes \.count"):
        extract(model, "")


def sets_before_it_reads(self, x):
    self.count = 3 if self.training else 2
    self.first = self.lin(x) * self.count
    return self.first + 1


def refills_a_list(self, x):
    self.log.clear()
    self.log.append(self.lin(x))
    return self.log[0] + 1


def follows_the_device(self, x):
    self.plain = self.plain.to(x.device)
    return self.lin(x) + self.plain


def puts_the_same_again(self, x):
    self.steps[0] = 0.25 * 2
    return self.lin(x) * self.steps[0]


def counts_for_nobody(self, x):
    self.count += 1
    return self.lin(x) * 1


def sets_a_pair_before_it_reads(self, x):
    self.pair = (x, self.lin(x))
    return self.pair[0] + self.pair[1]


def sets_plain_values_again(self, x):
    if self.sizes != (4, [4]):
        return self.lin(x) * 3
    self.sizes = (4, [4])
    return self.lin(x) * 2


def notes_on_a_leaf(self, x):
    self.lin.last_input = x
    return self.lin(x) + 1


def gives_to_a_module(self, x):
    self.reads.given = x * 2
    return self.reads(self.lin(x)) * 1


def gives_a_size(self, x):
    self.reads.given = x.shape[0]
    return self.reads(self.reads(self.lin(x))) * 1


def tells_a_logger(self, x):
    self.logger.debug("has %s", "come here")
    return self.lin(x) + 1


NO_STATE = [
    tells_a_logger,
    gives_to_a_module,
    gives_a_size,
    sets_before_it_reads,
    refills_a_list,
    follows_the_device,
    counts_for_nobody,
    puts_the_same_again,
    sets_a_pair_before_it_reads,
    sets_plain_values_again,
    notes_on_a_leaf,
]


@pytest.mark.parametrize("function", NO_STATE)
@pytest.mark.parametrize("ran_before", [False, True])
def test_V2_what_is_set_before_it_is_read_is_no_state(extract, function, ran_before):
    model, x = net(function).eval(), torch.arange(12.0).reshape(3, 4)
    twin = copy.deepcopy(model)
    if ran_before:
        model(x)
    extractor = extract(model, "")
    for step in range(3):
        assert torch.equal(extractor(x + step)[""], twin(x + step))
