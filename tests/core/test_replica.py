"""Which models are copied to be run on an example, and which are run themselves."""

from __future__ import annotations

import contextvars
import copy
import functools
import threading
import types
import weakref

import pytest
import torch
from torch import nn

from featuretap.backends import Options
from featuretap.keeping.replica import replica_of

MODEL = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def test_parameters_are_in_the_same_memory_and_all_else_is_copied():
    original = model()
    original[2].weight = original[0].weight
    original[1].table = {"kept": [original[0], torch.ones(2)]}
    replica = replica_of(original, nn.Sequential(original[1]))
    new = replica.model
    assert new[0].weight is not original[0].weight
    assert new[0].weight.data_ptr() == original[0].weight.data_ptr()
    assert new[2].weight is new[0].weight
    assert new[1].running_mean.data_ptr() != original[1].running_mean.data_ptr()
    assert new[1].table["kept"][0] is new[0]
    assert replica.others[0][0] is new[1]
    new.train(False)
    new[0].weight.requires_grad_(False)
    assert original.training
    assert original[0].weight.requires_grad


def test_instances_among_the_leaves_are_those_of_the_copy():
    original = model()
    replica = replica_of(original)
    leaves = replica.options(Options(leaf_modules=(nn.ReLU, original[1]))).leaf_modules
    assert leaves[0] is nn.ReLU
    assert leaves[1] is replica.model[1]


class CopiesItself(nn.Identity):
    def __deepcopy__(self, memo):
        return self


class ReadsAGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = MODEL

    def forward(self, x):
        return MODEL(x)


def with_closure():
    original = model()
    original.forward = lambda x: original[0](x)
    return original


def with_partial():
    original = model()
    original[1].forward = functools.partial(lambda layer, x: layer(x), lambda x: original[0](x))
    return original


def with_hook():
    original = model()
    original[1].register_forward_hook(lambda *_: original[0].weight)
    return original


def with_default():
    original = model()

    def forward(self, x, layers=(original[0],)):
        return layers[0](x)

    original.forward = types.MethodType(forward, original)
    return original


def with_weak_reference():
    original = model()
    original[2].parent = weakref.ref(original)
    return original


def with_lock():
    original = model()
    original.lock = threading.Lock()
    return original


def with_history():
    original = model()
    original[0].scaled = original[0].weight * 2
    return original


def scripted():
    return nn.Sequential(torch.jit.script(nn.Linear(4, 4)))


def of_another_class():
    original = model()
    original[0].weight = type("Sharded", (nn.Parameter,), {})(original[0].weight.detach())
    return original


class FoundByItsClass(nn.Module):
    current = None

    def __init__(self):
        super().__init__()
        self.inner = model()
        FoundByItsClass.current = (self.inner,)

    def forward(self, x):
        return self.current[0](x)


class Holder:
    get = classmethod(lambda kind: kind.instance)


class FoundInAnother(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()
        Holder.instance = self

    def forward(self, x):
        return Holder.get().inner(x)


CURRENT = contextvars.ContextVar("current")


class FoundInTheContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()
        CURRENT.set(self.inner)

    def forward(self, x):
        return CURRENT.get()(x)


def with_deep_closure():
    original = model()
    layer = original[0]
    deepest = lambda x: layer(x)
    middle = lambda x: deepest(x)
    original[1].function = lambda x: middle(x)
    return original


def with_cache():
    original = model()
    layer = original[0]
    original.get = functools.lru_cache(lambda key: layer)
    return original


def with_callable():
    original = model()
    layer = original[0]
    original.function = type("Calls", (), {"__call__": lambda self, x: layer(x)})()
    return original


class SetsItsState(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.factor = 2.0

    def __setstate__(self, state):
        super().__setstate__(state)
        self.factor = 5.0


class Reduced:
    def __reduce__(self):
        return Reduced, ()


def with_object_that_copies_itself():
    original = model()
    original.settings = [Reduced()]
    return original


FACTORS = weakref.WeakKeyDictionary()
NUMBERS = {}


class LooksItselfUp(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        FACTORS[self] = 3.0

    def forward(self, x):
        return super().forward(x) * FACTORS.get(self, 1.0)


class LooksItsNumberUp(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        NUMBERS[id(self)] = 3.0

    def forward(self, x):
        return super().forward(x) * NUMBERS.get(id(self), 1.0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize(
    "make",
    [
        *(with_closure, with_partial, with_hook, with_default, with_weak_reference, with_lock),
        *(with_history, scripted, of_another_class, ReadsAGlobal, FoundByItsClass, FoundInAnother),
        *(FoundInTheContext, with_deep_closure, with_cache, with_callable, SetsItsState),
        *(with_object_that_copies_itself, LooksItselfUp, LooksItsNumberUp),
        lambda: nn.Sequential(CopiesItself()),
    ],
)
def test_a_model_that_a_copy_might_not_stand_for_is_not_copied(make):
    assert replica_of(make()) is None


def with_bound_method():
    original = model()
    original.forward = types.MethodType(nn.Sequential.forward, original)
    return original


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def with_function():
    original = model()
    original.act = torch.relu
    original[1].register_forward_hook(lambda *_: None)
    return original


@pytest.mark.parametrize("make", [with_bound_method, parametrized, with_function])
def test_what_a_copy_stands_for_is_copied(make):
    original = make()
    replica, x = replica_of(original), torch.ones(2, 4)
    assert torch.equal(replica.model(x), copy.deepcopy(original)(x))
