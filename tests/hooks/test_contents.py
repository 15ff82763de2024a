"""Modules looked at all together show the same changes as each by itself, and are put back as well."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from featuretap.keeping.content import content_of
from featuretap.keeping.put_back import HookKey
from featuretap_hooks.keeping.contents import Contents

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.numbers, self.label, self.pair = [1, 2], "a", ([3], 4)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.turns = iter([1, 2, 3])


def model():
    net = nn.Sequential(Block(), Block(), Counting(), torch.jit.script(nn.ReLU()))
    net[1].numbers = net[0].numbers
    net[0].linear.register_forward_hook(print)
    return net


def keeps(*_):
    return None


def deletes(net):
    del net[1].label


def renames(net):
    net[1].name = net[1].label
    del net[1].label


def moves_a_child(net):
    net[0].norm, net[1].norm = net[1].norm, net[0].norm


def forgets_the_hooks(net):
    net[0].linear._forward_hooks.clear()


def exchanges_a_registry(net):
    net[1].linear._forward_hooks = OrderedDict({1: keeps})


CHANGES = {
    "an attribute": lambda net: setattr(net[1], "label", "b"),
    "a new attribute": lambda net: setattr(net[0].linear, "last", torch.ones(1)),
    "no attribute any more": deletes,
    "the name of an attribute": renames,
    "an attribute of a class that holds more": lambda net: setattr(net[0].norm, "eps", [1]),
    "the flag": lambda net: net[1].norm.train(False),
    "a buffer": lambda net: setattr(net[1], "unsaved", torch.ones(2)),
    "a parameter": lambda net: setattr(net[1].linear, "bias", None),
    "a child": moves_a_child,
    "a new child": lambda net: net.add_module("4", nn.ReLU()),
    "which buffers are saved": lambda net: net[0]._non_persistent_buffers_set.clear(),
    "a forward hook": lambda net: net[1].linear.register_forward_hook(keeps),
    "a backward hook": lambda net: net[1].linear.register_full_backward_hook(keeps),
    "fewer hooks": forgets_the_hooks,
    "a registry": exchanges_a_registry,
    "a container": lambda net: net[1].numbers.append(3),
    "a container in a tuple": lambda net: net[1].pair[0].clear(),
    "a hook in TorchScript": lambda net: vars(net[3])["_forward_hooks"].update({1: keeps}),
}


@pytest.mark.parametrize("is_known", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_changed_is_what_each_module_shows_and_is_put_back(change, is_known):
    net = model()
    modules = list(net.modules())
    layout = Contents(modules, None).layout if is_known else None
    seen: dict[int, int] = {}
    each = [(module, content_of(module, seen)) for module in modules]
    contents = Contents(modules, layout)
    assert set(contents.changes()) == set()

    change(net)

    expected = {(id(module), found) for module, content in each for found in content.changes()}
    assert expected
    assert set(contents.changes()) == expected
    assert {id(m) for m in contents.changed()} == {key for key, _ in expected}
    contents.restore()
    assert not [change for _, content in each for change in content.changes()]
    assert not set(contents.changes())


def test_an_iterator_is_put_back():
    net = model()
    contents = Contents(list(net.modules()), None)
    next(net[2].turns)
    assert contents.changed() == [net[2]]
    contents.restore()
    assert [*net[2].turns] == [1, 2, 3]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_layout_of_before_a_change_serves_for_the_state_after_it(change):
    net = model()
    modules = list(net.modules())
    layout = Contents(modules, None).layout
    change(net)
    contents = Contents(modules, layout)
    assert not set(contents.changes())
    net[1].numbers.append(7)
    net[0].norm.eps = 0.5
    net[1].linear.weight = None
    changed = {id(module) for module in contents.changed()}
    # What two modules hold is looked at in the first.
    assert changed == {id(net[0]), id(net[0].norm), id(net[1].linear)}


def test_hooks_of_featuretap_are_no_change():
    net = model()
    contents = Contents(list(net.modules()), None)
    net[1].linear._forward_hooks[HookKey()] = keeps
    assert not set(contents.changes())
    contents.restore()
    assert len(net[1].linear._forward_hooks) == 1


def test_modules_without_anything_unusual_are_kept_in_few_objects():
    modules = [module for _ in range(50) for module in Block().modules()]
    contents = Contents(modules, None)
    assert not contents._unusual
    assert len(contents._held) == 50
    assert contents.layout.fits(contents._attributes)
