"""Rule M5 for containers of the user's own classes: no method of theirs is asked for anything."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict, UserDict, defaultdict, deque

import pytest
import torch
from torch import nn

import featuretap

X = torch.linspace(-1, 1, 8).view(2, 4)


class Builds(OrderedDict):
    """A registry of layers gives out new ones, as that of transformers does."""

    def __getitem__(self, key):
        return super().__getitem__(key)()


class BuildsFromADict(dict):
    def __getitem__(self, key):
        return super().__getitem__(key)()

    def values(self):
        raise AssertionError("nobody may ask")

    items = __iter__ = __len__ = copy = values


class NeedsArguments(OrderedDict):
    def __init__(self, first, second):
        super().__init__(a=first, b=second)


class WrittenOnce(dict):
    def __setitem__(self, key, value):
        if key in self:
            raise KeyError(f"{key} is there already")
        super().__setitem__(key, value)


class Frozen(dict):
    def refuse(self, *args, **kwargs):
        raise TypeError("frozen")

    __setitem__ = __delitem__ = clear = update = pop = refuse


class BuildsFromAList(list):
    def __getitem__(self, index):
        return super().__getitem__(index)()

    def __iter__(self):
        return (build() for build in super().__iter__())


class Window(deque):
    def __init__(self, length):
        super().__init__([0] * length, maxlen=length)


class Output(OrderedDict):
    """What it holds is its attributes as well, as of transformers' outputs."""

    def __init__(self, **values):
        super().__init__(values)
        vars(self).update(values)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        vars(self)[key] = value

    def update(self, *args):
        raise TypeError("not this way")


MAKERS = {
    "builds": lambda: Builds(a=nn.ReLU, b=nn.Tanh),
    "builds from a dict": lambda: BuildsFromADict(a=nn.ReLU, b=nn.Tanh),
    "needs arguments": lambda: NeedsArguments(1, 2),
    "written once": lambda: WrittenOnce(a=1, b=2),
    "frozen": lambda: Frozen(a=1, b=2),
    "builds from a list": lambda: BuildsFromAList([nn.ReLU, nn.Tanh]),
    "window": lambda: Window(2),
    "output": lambda: Output(a=1, b=2),
    "default": lambda: defaultdict(list, a=1, b=2),
    "counter": lambda: Counter(a=1, b=2),
    "user": lambda: UserDict(a=1, b=2),
    "ordered": lambda: OrderedDict(b=2, a=1),
}
GLOBAL = None


def content(container):
    """Say what a container holds, in its order, without its own methods."""
    held = container.data if isinstance(container, UserDict) else container
    for kind in (OrderedDict, dict):
        if isinstance(held, kind):
            return list(kind.items(held)), dict(vars(container)) if type(held) is Output else None
    kind = list if isinstance(held, list) else deque
    return list(kind.__iter__(held))


def write(container):
    """Change what a container holds, as the class of Python's own does."""
    if isinstance(container, Output):
        container["a"] = 5
    elif isinstance(container, OrderedDict):
        OrderedDict.__setitem__(container, "c", 3)
        OrderedDict.move_to_end(container, "a")
    elif isinstance(container, UserDict):
        container["c"] = 3
    elif isinstance(container, dict):
        dict.__setitem__(container, "c", 3)
        dict.pop(container, "a")
    elif isinstance(container, list):
        list.append(container, nn.Identity)
    else:
        container.append(1)


class Holds(nn.Module):
    """Has a container, and writes it, or only mentions it."""

    def __init__(self, container, writes):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.container = container
        self.writes = writes

    def forward(self, x, fails=False):
        y = self.lin(x)
        if self.writes:
            write(self.container)
            write(GLOBAL)
        if fails:
            raise RuntimeError("as it was told to")
        return y * 2


@pytest.fixture(params=MAKERS)
def containers(request, monkeypatch):
    """One that the module has, and one in a global of the file of its class."""
    monkeypatch.setitem(globals(), "GLOBAL", MAKERS[request.param]())
    return MAKERS[request.param](), GLOBAL


def test_M5_a_container_of_a_class_of_its_own_is_looked_at_by_nobody(backend, extract, containers):
    own, others = containers
    before = content(own), content(others)
    model = Holds(own, writes=False)
    featuretap.get_graph_node_names(model, backend=backend, example_args=(X,))
    extractor = extract(model, ["lin", "mul"])
    for _ in range(3):
        assert torch.equal(extractor(X)["mul"], model.lin(X) * 2)
    assert (content(own), content(others)) == before
    assert model.container is own


def test_M5_a_container_of_a_class_of_its_own_is_put_back(backend, extract, containers):
    own, others = containers
    before = content(own), content(others)
    model = Holds(own, writes=True)
    # Whether this is state, which fx refuses, is another question.
    for ask in (
        lambda: featuretap.get_graph_node_names(model, backend=backend, example_args=(X,)),
        lambda: extract(model, ["mul"], example_args=(X,)),
        lambda: extract(model, ["mul"])(X, fails=True),
    ):
        with contextlib.suppress(featuretap.UntraceableModelError, RuntimeError):
            ask()
        assert (content(own), content(others)) == before
    assert model.container is own


TAKES_OUT = {
    "pop": lambda m: m.queue.pop(),
    "popleft": lambda m: m.queue.popleft(),
    "remove": lambda m: m.queue.remove(2),
    "clear": lambda m: m.queue.clear(),
    "rotate": lambda m: m.queue.rotate(1),
    "reverse": lambda m: m.queue.reverse(),
    "discard": lambda m: m.names.discard("a"),
    "delete an item": lambda m: m.table.__delitem__("a"),
    "popitem": lambda m: m.table.popitem(),
    "pop of a dict": lambda m: m.table.pop("a"),
}


def deletes(model):
    del model.table["b"]


class TakesOut(nn.Module):
    """Holds containers, and lets something go in each call."""

    def __init__(self, take):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.queue = deque([1, 2, 3])
        self.names = {"a", "b"}
        self.table = {"a": 1, "b": 2}
        self.take = take

    def forward(self, x, fails=False):
        y = self.lin(x)
        self.take(self)
        if fails:
            raise ValueError("as it was told to")
        return y * 2


@pytest.mark.parametrize("how", [*TAKES_OUT, "del"])
def test_M5_what_a_failing_call_took_out_is_there_again(extract, how):
    model = TakesOut(TAKES_OUT.get(how, deletes))
    before = list(model.queue), set(model.names), dict(model.table)
    # fx refuses it, for the next call would read what this one left.
    with contextlib.suppress(featuretap.UntraceableModelError):
        extractor = extract(model, ["lin", ""])
        with pytest.raises(ValueError, match="told to"):
            extractor(X, fails=True)
    assert (list(model.queue), set(model.names), dict(model.table)) == before
