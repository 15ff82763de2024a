"""``torch.export`` of extractors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap_hooks
from support import drawn, identical

create = featuretap_hooks.create_feature_extractor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.b = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True))

    def forward(self, x):
        y = self.l(x) + 1
        y = self.b(y)
        return y * 2


X = drawn(2, 4)


def check(extractor, expected, strict):
    program = torch.export.export(extractor, (X,), strict=strict)
    features = program.module()(X)
    assert list(features) == list(expected)
    assert identical(dict(features), dict(expected))
    assert identical(dict(extractor(X)), dict(expected))
    stacks = (node.meta.get("nn_module_stack") for node in program.graph.nodes)
    return {path for stack in stacks if stack for path, _ in stack.values()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("nodes", [["l"], ["add"], ["x", "l", "add", "b.1", "mul"], ["b", ""]])
def test_M4_export_before_and_after_calls(nodes, calls, early_stop):
    model = Model().eval()
    expected = create(model, nodes)(X)
    extractor = create(model, nodes, early_stop=early_stop)
    for _ in range(calls):
        extractor(X)
    assert {"l", "b.1"} <= check(extractor, expected, strict=False)


class Block(nn.Module):
    """One of its operations has the name of a module."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(torch.relu(x) - 0.3) * 0.5 - 0.2)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.block = nn.Linear(4, 4), Block()

    def forward(self, x):
        return self.block(self.before(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("example", [{}, {"example_args": (X,)}])
def test_M4_export_of_operations_in_a_block(calls, example):
    model = Nested().eval()
    first = torch.relu(model.before(X))
    second = torch.relu(first - 0.3)
    third = torch.relu(second * 0.5 - 0.2)
    expected = {"relu_1": first, "sub": first - 0.3, "relu": second, "relu_2": third}
    for name, value in expected.items():
        extractor = create(model, [f"block.{name}"], **example)
        for _ in range(calls):
            extractor(X)
        check(extractor, {f"block.{name}": value}, strict=False)


# Dynamo says that the hooks are told what to keep.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:While compiling")
@pytest.mark.parametrize("nodes", [["l"], ["add"], ["l", "mul"]])
def test_M4_strict_export_after_a_call(nodes):
    extractor = create(Model().eval(), nodes)
    expected = extractor(X)
    assert "_model.l" in check(extractor, expected, strict=True)


class _Augments(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x):
        y = self.l(x)
        y += x
        y *= 2
        y -= 1
        y /= 3
        return y * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:While compiling")
@pytest.mark.parametrize("node", ["add", "truediv", "mul_1"])
def test_M4_strict_export_of_augmented_assignments(node):
    extractor = create(_Augments().eval(), [node])
    check(extractor, extractor(X), strict=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_M4_export_with_a_dynamic_batch():
    class Reshapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            y = self.l(x)
            return y.view(x.shape[0], 2, 2) + 1

    extractor = create(Reshapes(), ["l", "view"])
    program = torch.export.export(
        extractor, (X,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    )
    more = torch.cat([X, X, X])
    assert identical(dict(program.module()(more)), dict(extractor(more)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_M4_export_of_a_glob_needs_a_call():
    model = Model().eval()
    extractor = create(model, "b.*")
    with pytest.raises(RuntimeError, match="call the extractor once before"):
        torch.export.export(extractor, (X,))
    check(extractor, extractor(X), strict=False)


class _Tuple(torch.nn.Module):
    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, x):
        return tuple(self.extractor(x).values())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("names", [["0"], ["0", "1"]])
def test_M4_torch_jit_trace_of_an_extractor(names, known):
    model, x = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)]), torch.randn(2, 4)
    kwargs = {"example_args": (x,)} if known else {}
    extractor = featuretap_hooks.create_feature_extractor(model, names, **kwargs)
    traced = torch.jit.trace(_Tuple(extractor), (x,))
    y = torch.randn(2, 4)
    assert all(map(torch.equal, traced(y), extractor(y).values()))
