"""Rule M4: extractors of hooks under ``torch.compile``."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
import featuretap_hooks
from featuretap_hooks.compiling import BrokenGraphError
from support import identical
from zoo import NestedScopes

create = featuretap_hooks.create_feature_extractor
X = torch.ones(2, 4)


def test_M4_compile_with_fullgraph_for_operations_and_early_stop():
    model = NestedScopes()
    (x,) = model.example()
    extractor = create(model, ["stage.0.lin", "stage.1.act"], example_args=(x,))
    expected = extractor(x)
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    assert identical(compiled(x), expected)
    unknown = create(model, ["mul"])
    with pytest.raises(Exception, match="call the extractor once before"):
        torch.compile(unknown, fullgraph=True, backend="eager")(x)


class Again(nn.Module):
    """Calls a container and its layers several times, also on its own."""

    def __init__(self):
        super().__init__()
        self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.c = nn.Linear(4, 4)

    def forward(self, x):
        y = self.b(x)
        y = self.b(y) + y
        return self.c(self.b[0](y) + self.b(y))


AGAIN = ["b", "b_1", "b_2", "b.0_1", "b.0_2", "b.0_3", "b.1_2", "add", "add_1", "c"]


@pytest.mark.parametrize("names", [AGAIN, *([name] for name in AGAIN)], ids=" ".join)
def test_M4_compile_with_fullgraph_for_the_second_call_of_a_module(names):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Again()
    extractor = create(model, names, example_args=(X,))
    seen = {}
    handles = [
        module.register_forward_hook(
            lambda _m, _a, value, path=path: seen.setdefault(path, []).append(value)
        )
        for path, module in model.named_modules()
    ]
    model(X)
    for handle in handles:
        handle.remove()
    features = torch.compile(extractor, fullgraph=True, backend="eager")(X)
    assert list(features) == list(extractor(X))
    for name, value in features.items():
        path, _, number = name.partition("_")
        if path in seen:
            assert torch.equal(value, seen[path][int(number or 0)])
        else:
            assert torch.equal(value, extractor(X)[name])
    assert len(features) == len(names)


@pytest.mark.parametrize("name", ["add", "b_1", "b.0_2"])
def test_M4_compile_that_cannot_know_yet_runs_the_real_forward(name):
    torch.manual_seed(0)
    model = Again()
    expected = create(model, [name])(X)
    torch.compiler.reset()
    compiled = torch.compile(create(model, [name]), backend="eager")
    for _ in range(2):
        assert identical(compiled(X), expected)


class Breaks(nn.Module):
    """Prints between operations, which dynamo does not follow."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        y = self.lin(x) * 2 * 5
        print(end="")
        return y * 3 * 4 + 1


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign() * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class HasItsOwnBackward(nn.Module):
    """Runs operations that dynamo counts in another way."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return Doubling.apply(self.lin(x)) * 3 + 1


class LeavesTorch(nn.Module):
    """Takes a gradient inside, which dynamo does not follow."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            energy = self.lin(x).tanh().sum()
            (force,) = torch.autograd.grad(energy, x)
        return energy * 2, -force


class NotShown(nn.Module):
    """Calls functions of which dynamo does not tell a mode."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.relu_(self.lin(x) - 1).relu_() + 1
        y = F.hardswish(F.pad(y, (1, 1)) * 3) * 5
        return (abs(y) * 7).mT @ y


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [Breaks, HasItsOwnBackward, LeavesTorch, NotShown])
def test_M4_a_forward_that_is_not_compiled_as_a_whole_gives_no_other_nodes_value(kind, compiler):
    torch.manual_seed(0)
    model = kind().eval()
    names = featuretap_hooks.get_graph_node_names(model, example_args=(X,))
    # Dynamo lets nothing out of such a function, and fails.
    inside = {"sign", "mul"} if kind is HasItsOwnBackward else set()
    for name in set(names) - inside:
        extractor = create(model, [name])
        expected = extractor(X)
        torch.compiler.reset()
        compiled = torch.compile(extractor, backend=compiler)
        found = None
        with contextlib.suppress(BrokenGraphError):  # dynamo has left the forward half-way
            found = compiled(X)
        assert found is None or identical(found, expected)
        assert identical(compiled(X), expected)
        assert identical(extractor(X), expected)


def test_M4_a_forward_that_keeps_nothing_is_watched_in_the_call_that_broke():
    model = Breaks().eval()
    extractor = create(model, ["mul_2", "add"], example_args=(X,))
    torch.compiler.reset()
    features = torch.compile(extractor, backend="eager")(X)
    assert identical(features, extractor(X))


def test_V5_a_compiled_forward_that_does_not_reach_a_node_says_so():
    class Shortcut(nn.Module):
        def forward(self, x, short=False):
            y = x * 2
            return y if short else y + 1

    extractor = create(Shortcut(), ["mul", "add"])
    extractor(X)
    torch.compiler.reset()
    compiled = torch.compile(extractor, backend="eager")
    assert list(compiled(X)) == ["mul", "add"]
    for _ in range(2):
        with pytest.raises(featuretap.NodeNotReachedError, match="add"):
            compiled(X, short=True)


class Twice(nn.Module):
    """Calls a block twice, and writes a buffer twice."""

    def __init__(self):
        super().__init__()
        self.block = Adds()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen.lerp_(x.detach().mean(0), 0.5)
        self.seen.lerp_(x.detach().mean(0), 0.5)
        return self.block(self.block(x))


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return (self.lin(x) + x).relu_()


@pytest.mark.parametrize(
    "names", [["block", "block.add_1"], ["block.add", "block_1"], ["block", "block_1"], ["lerp_"]]
)
def test_M4_our_copies_are_no_operations_of_the_model_and_memory_is_copied(names):
    torch.manual_seed(0)
    model = Twice().eval()
    extractor = create(model, names)
    extractor(X)
    model.seen.zero_()
    expected = extractor(X)
    torch.compiler.reset()
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    model.seen.zero_()
    features = compiled(X)
    model.seen.fill_(7)
    assert identical(features, expected)


@pytest.mark.parametrize("node", ["0", "sin"])
def test_M3_M5_a_model_that_was_compiled_with_an_extractor_can_be_copied_and_pickled(node):
    model = Sines().eval()
    extractor = create(model, [node], example_args=(X,))
    expected = extractor(X)[node]
    compiled = torch.compile(extractor, backend="eager")
    assert identical(compiled(X)[node], expected)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert identical(again(X), model(X))
        assert identical(create(again, [node])(X)[node], expected)
    for again in (pickle.loads(pickle.dumps(extractor)), copy.deepcopy(extractor)):
        assert identical(again(X)[node], expected)
        assert identical(torch.compile(again, backend="eager")(X)[node], expected)
    assert identical(compiled(X)[node], expected)


class Sines(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x):
        return self[1](self[0](x).sin())
