"""Rules V2, E2, M5: what the model keeps from one call to the next."""

from __future__ import annotations

import contextlib
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

import featuretap
from stateful import counts, net
from support import snapshot

FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")


def fills_a_dict(self, x):
    y = self.lin(x)
    if "last" in self.cache:
        y = y + self.cache["last"]
    self.cache["last"] = y
    return y * 1


def fills_a_list(self, x):
    self.log.append(1)
    return self.lin(x) * len(self.log)


def flips_a_flag(self, x):
    y = self.norm(self.lin(x))
    self.norm.train(not self.norm.training)
    return y * 1


def freezes_for_a_while(self, x):
    self.lin.weight.requires_grad_(False)
    y = self.lin(x)
    self.lin.weight.requires_grad_(True)
    return y + 1


def fills_an_object(self, x):
    if not hasattr(self.helper, "first"):
        self.helper.first = self.lin(x)
    return self.lin(x) + self.helper.first


def fills_a_dict_in_a_dict(self, x):
    return self.lin(x) + self.nested["inner"].setdefault("first", x * 2)


def exchanges_parameters(self, x):
    doubled = {name: parameter * 2 for name, parameter in self.lin.named_parameters()}
    return self.lin(torch.func.functional_call(self.lin, doubled, (x,)))


def freezes_a_module_for_a_while(self, x):
    self.lin.requires_grad_(False)
    y = self.lin(x)
    self.lin.requires_grad_(True)
    return y + 1


def exchanges_parameters_of_a_container(self, x):
    doubled = {name: parameter * 2 for name, parameter in self.stack.named_parameters()}
    return torch.func.functional_call(self.stack, doubled, (x,)) * 1


def sets_an_attribute_of_what_cannot_be_looked_into(self, x):
    self.keeper.factor = 3
    return self.keeper(self.lin(x)) * 1


def sets_an_attribute_of_what_fails(self, x):
    self.branches.factor = 3
    return self.branches(self.lin(x)) * 1


def feeds_back_into_a_module(self, x):
    y = self.reads(self.lin(x))
    self.reads.given = y
    return y * 1


def feeds_back_into_a_leaf(self, x):
    y = self.keeper(self.lin(x))
    self.keeper.factor = 3
    return y * 1


def fills_a_container_of_another(self, x):
    y = self.reads(self.lin(x))
    self.reads.log.append(y)
    return y * 1


def doubles_by_a_hook(self, x):
    handle = self.lin.register_forward_hook(lambda module, args, value: value * 2)
    y = self.lin(x)
    handle.remove()
    return y + 1


def counts_in_a_method(self, x):
    self.step()
    return self.lin(x) * self.factor


def counts_by_name(self, x):
    setattr(self, "count", getattr(self, "count") + 1)  # noqa: B009, B010
    return self.lin(x) * vars(self)["count"]


def counts_in_an_object(self, x):
    self.slotted.calls += 1
    return self.lin(x) * self.slotted.calls


def counts_in_a_counter(self, x):
    self.tally["calls"] += 1
    return self.lin(x) * self.tally["calls"]


def fills_a_set(self, x):
    self.seen.add(len(self.seen))
    return self.lin(x) * len(self.seen)


def rotates_a_list(self, x):
    self.steps.append(self.steps.pop(0))
    return self.lin(x) * self.steps[0]


def counts_in_an_array(self, x):
    self.array += 1
    return self.lin(x) * float(self.array[0])


def throws_dice_of_its_own(self, x):
    return self.lin(x) * self.dice.random()


def draws_from_a_generator_of_its_own(self, x):
    return self.lin(x) * float(self.draws.random())


def keeps_an_attribute_that_was_not_there(self, x):
    y = self.lin(x)
    if hasattr(self, "first"):
        y = y + self.first
    self.first = y
    return y * 1


def counts_what_another_reads(self, x):
    self.reads.given += 1
    return self.reads(self.lin(x)) * 1


def keeps_a_pair(self, x):
    h, c = self.pair if self.pair is not None else (x, x)
    self.pair = (h + self.lin(x), c * 2)
    return self.pair[0] + self.pair[1]


def keeps_a_new_dict(self, x):
    y = self.lin(x) + sum(self.found.values())
    self.found = {"last": y.sum()}
    return y * 1


def keeps_an_average(self, x):
    self.plain = self.plain * 0.5 + 1
    return self.lin(x) + self.plain


def exchanges_submodules(self, x):
    y = self.norm(self.lin(x))
    self.lin, self.norm = self.norm, self.lin
    return y * 1


def sets_data_of_a_buffer(self, x):
    self.last.data = self.last + 1
    return self.lin(x) + self.last


def sets_data_of_a_buffer_to_a_feature(self, x):
    self.last.data = x[0]
    return self.lin(x) + self.last


def hooks_every_module(self, x):
    handle = register_module_forward_hook(lambda module, args, value: value * 2)
    y = self.lin(x)
    handle.remove()
    return y * 1


class Doubles(TorchFunctionMode):
    """Doubles what is added."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        return value * 2 if getattr(func, "__name__", "") == "add" else value


def enters_a_mode_of_its_own(self, x):
    with Doubles():
        return torch.add(self.lin(x), 1)


def counts_iterations(self, x):
    return self.lin(x) * next(self.numbers)


STATEFUL = [
    (counts_in_a_method, r"changes \.count"),
    (counts_by_name, r"changes \.count"),
    (counts_in_an_object, "changes an object that it keeps"),
    (counts_in_a_counter, "changes what it puts into a container"),
    (fills_a_set, "changes what it puts into a container"),
    (rotates_a_list, "changes what it puts into a container"),
    (counts_in_an_array, "changes an array that it keeps"),
    (throws_dice_of_its_own, "changes random numbers of its own"),
    (draws_from_a_generator_of_its_own, "changes random numbers of NumPy's of its own"),
    (keeps_an_attribute_that_was_not_there, r"changes \.first"),
    (counts_what_another_reads, r"sets \.given of 'reads'"),
    (keeps_a_pair, r"changes \.pair"),
    (keeps_a_new_dict, r"changes \.found"),
    (keeps_an_average, r"changes \.plain"),
    (exchanges_submodules, "changes its modules: lin, norm"),
    (sets_data_of_a_buffer, "assignment to an attribute of a tensor"),
    (sets_data_of_a_buffer_to_a_feature, "assignment to an attribute of a tensor"),
    (hooks_every_module, "hooks for every module"),
    (enters_a_mode_of_its_own, "enters a mode of its own"),
    (counts, r"changes \.count"),
    (fills_a_dict, "changes what it puts into a container"),
    (fills_a_list, "changes what it puts into a container"),
    (fills_an_object, r"changes \.first of an object that it keeps"),
    (fills_a_dict_in_a_dict, "changes what it puts into a container"),
    (flips_a_flag, "changes the training flag of norm"),
    (freezes_for_a_while, "freezes or unfreezes"),
    (freezes_a_module_for_a_while, "freezes or unfreezes"),
    (exchanges_parameters, "sets ._parameters of 'lin'"),
    (exchanges_parameters_of_a_container, "sets ._parameters of 'stack'"),
    (sets_an_attribute_of_what_cannot_be_looked_into, "sets .factor of 'keeper'"),
    (sets_an_attribute_of_what_fails, "sets .factor of 'branches'"),
    (feeds_back_into_a_module, "changes .given of 'reads'"),
    (feeds_back_into_a_leaf, "changes .factor of 'keeper'"),
    (fills_a_container_of_another, "changes what it puts into a container of 'reads'"),
    (doubles_by_a_hook, "sets ._forward_hooks of 'lin'"),
]


@FX_ONLY
@pytest.mark.parametrize(("function", "reason"), STATEFUL, ids=lambda v: getattr(v, "__name__", ""))
def test_E2_V2_state_that_a_graph_would_not_move_is_refused(extract, function, reason):
    model = net(function)
    before = snapshot(model)
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        extract(model, "")
    assert snapshot(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("numbers", [lambda: itertools.count(1), lambda: itertools.cycle([2, 3])])
def test_E2_V2_an_iterator_moves_with_the_calls_and_not_with_the_making(extract, backend, numbers):
    model, x = net(counts_iterations), torch.arange(12.0).reshape(3, 4)
    model.numbers = numbers()
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="changes the iterator .numbers"):
            extract(model, "")
    else:
        extractor = extract(model, "", example_args=(x,))
        twin = net(counts_iterations)
        twin.numbers = numbers()
        for _ in range(3):
            assert torch.equal(extractor(x)[""], twin(x))
        return
    expected = numbers()
    assert [next(model.numbers) for _ in range(3)] == [next(expected) for _ in range(3)]


@pytest.mark.parametrize("function", [function for function, _ in STATEFUL])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.only("hooks", why="fx refuses the model, and auto turns to hooks")
def test_V2_auto_serves_state_as_the_real_forward_has_it(backend, function, inside):
    torch.manual_seed(0)
    model = nn.Sequential(net(function)) if inside else net(function)
    model.train()
    twin, x = copy.deepcopy(model), torch.arange(12.0).reshape(3, 4)
    # A module inside that fx refuses is a leaf of fx.
    warns = contextlib.nullcontext() if inside else pytest.warns(featuretap.FallbackWarning)
    with warns:
        extractor = featuretap.create_feature_extractor(model, [""])
    for _ in range(3):
        assert torch.equal(extractor(x)[""], twin(x))
