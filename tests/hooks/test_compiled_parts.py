"""Models with parts that are compiled: these are leaves, and run as nobody watched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import identical, snapshot

create = featuretap_hooks.create_feature_extractor
names_of = featuretap_hooks.get_graph_node_names
X = torch.ones(2, 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x):
        return self.l(x).sin() + 1


def wrapped():
    return torch.compile(Block(), backend="eager")


def in_place():
    block = Block()
    block.compile(backend="eager")
    return block


class Model(nn.Module):
    def __init__(self, sub):
        super().__init__()
        self.pre, self.sub = nn.Linear(4, 4), sub

    def forward(self, x):
        return self.sub(self.pre(x) + 1) * 2


@pytest.fixture(autouse=True)
def _reset():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [wrapped, in_place])
@pytest.mark.parametrize("warm", [False, True])
@torch.no_grad()
def test_N1_a_compiled_submodule_is_one_node(make, warm):
    model = Model(make()).eval()
    if warm:
        model(X)
    before = snapshot(model)
    assert names_of(model, example_args=(X,)) == ["x", "pre", "add", "sub", "mul"]
    assert names_of(model) == ["x", "pre", "sub"]
    for args in (None, (X,)):
        for nodes in (["sub"], ["add", "mul"], ["sub", "mul", ""]):
            extractor = create(model, nodes, example_args=args)
            for _ in range(3):
                features = extractor(X)
                assert list(features) == nodes
            expected = {"sub": model.sub(model.pre(X) + 1), "mul": model(X), "": model(X)}
            for name in features.keys() & expected.keys():
                assert identical(features[name], expected[name])
    assert snapshot(model)[:-1] == before[:-1]  # dynamo replaces things of its own


@pytest.mark.parametrize("make", [wrapped, in_place])
def test_E1_what_is_inside_of_a_compiled_submodule_is_no_node(make):
    for name in ("sub.l", "sub._orig_mod.l", "sub.sin"):
        with pytest.raises(featuretap.NodeNotFoundError, match="Did you mean 'sub'"):
            create(Model(make()), name)


def test_N1_a_root_that_is_compiled_in_place_is_looked_through():
    model = in_place()
    model(X)
    assert names_of(model, example_args=(X,)) == ["x", "l", "sin", "add"]
    assert identical(create(model, ["sin", ""])(X)[""], model(X))


@torch.compile(backend="eager")
def free(x):
    return x.cos() + 1


class CallsFree(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = torch.compile(free.__wrapped__, backend="eager")

    def forward(self, x):
        return self.own(free(x + 1)) * 2


def test_N1_a_compiled_function_is_one_node():
    model = CallsFree()
    own = model.own
    assert names_of(model, example_args=(X,)) == ["x", "add", "free", "free_1", "mul"]
    for nodes in (["free"], ["free", "free_1", "mul"]):
        extractor = create(model, nodes, missing="skip", example_args=(X,))
        for _ in range(2):
            assert identical(extractor(X)["free"], free(X + 1))
    assert model.own is own


class CompiledMethod(nn.Module):
    """Calls a method that is compiled in the first forward."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    @torch.compile(backend="eager")
    def act(self, x):
        return x.sin() + self.lin.bias

    def forward(self, x):
        return self.act(self.lin(x)) * 2


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_V2_a_method_that_is_compiled_is_one_node():
    torch.compiler.reset()
    model, method = CompiledMethod(), vars(CompiledMethod)["act"]
    names = list(names_of(model, example_args=(X,)))
    assert names == ["x", "lin", "act", "mul"]
    features = create(model, ["act", "mul"])(X)
    assert identical(features["mul"], model(X))
    assert identical(features["act"], model.act(model.lin(X)))
    assert vars(CompiledMethod)["act"] is method


class Compiles(nn.Module):
    """Compiles a function in its forward, where nobody can find it before."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return torch.compile(free.__wrapped__, backend="eager")(self.lin(x)) * 2


@pytest.mark.filterwarnings("ignore:Dynamo", "ignore:The .grad attribute")
def test_E2_a_forward_that_compiles_itself_says_what_to_do():
    torch.compiler.reset()
    model = Compiles()
    assert identical(create(model, ["lin"])(X)["lin"], model.lin(X))
    extractor = create(model, ["mul"], early_stop=False)
    with pytest.raises(
        RuntimeError, match=r"set_stance\('force_eager'\), which runs it uncompiled"
    ):
        extractor(X)
    with pytest.raises(
        featuretap.UntraceableModelError, match="compiles a function or a module itself"
    ):
        names_of(model, example_args=(X,))
    with torch.compiler.set_stance("force_eager"):
        assert list(names_of(model, example_args=(X,))) == ["x", "lin", "cos", "add", "mul"]
        for _ in range(2):
            assert identical(extractor(X)["mul"], model(X))
