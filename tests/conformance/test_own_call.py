"""A model with a ``__call__`` of its own: what it does there is of the model, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featuretap import UntraceableModelError, create_feature_extractor
from support import drawn, here, identical


class Scaled(nn.Module):
    """Changes what its forward is given, and what that returns."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4, device=here())

    def __call__(self, x, scale=2.0, *, shift=1.0):
        return super().__call__(x * scale) + shift

    def forward(self, given):
        return self.lin(given).relu()

    def steps(self, x, scale=2.0, shift=1.0):
        mul = x * scale
        lin = self.lin(mul)
        return {"x": x, "mul": mul, "lin": lin, "relu": lin.relu(), "": lin.relu() + shift}


class Flipped(nn.Module):
    """Runs its forward twice in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4, device=here())

    def __call__(self, x):
        return (super().__call__(x) + super().__call__(x.flip(-1))) / 2

    def forward(self, x):
        return self.lin(x).relu()


def test_N1_what_an_own_call_computes_has_names(extract, names_of):
    model, x = Scaled(), drawn(3, 4)
    expected = {**model.steps(x), "add": model(x)}
    assert set(names_of(model, example_args=(x,))) >= {"x", "mul", "lin", "relu", "add"}
    features = extract(model, list(expected), example_args=(x,))(x)
    assert all(identical(features[name], value) for name, value in expected.items())


@pytest.mark.parametrize("beside", ["lin", "relu", "mul"])
def test_V1_the_output_is_what_the_own_call_returns_whatever_else_is_asked_for(extract, beside):
    model, x = Scaled(), drawn(3, 4)
    extractor = extract(model, [beside, ""])
    for _ in range(3):
        features = extractor(x)
        assert identical(features[""], model(x))
        assert identical(features[beside], model.steps(x)[beside])


def test_V2_the_extractor_takes_what_the_own_call_takes(extract):
    model, x = Scaled(), drawn(3, 4)
    extractor = extract(model, ["lin", ""])
    features = extractor(x, 3.0, shift=2.0)
    assert identical(features[""], model(x, 3.0, shift=2.0))
    assert identical(features["lin"], model.steps(x, 3.0)["lin"])


def test_N3_a_forward_that_runs_twice_in_one_call_is_counted_on(extract, names_of):
    model, x = Flipped(), drawn(3, 4)
    first, second = model.lin(x), model.lin(x.flip(-1))
    expected = {
        "lin": first,
        "relu": first.relu(),
        "flip": x.flip(-1),
        "lin_1": second,
        "relu_1": second.relu(),
        "add": first.relu() + second.relu(),
        "truediv": model(x),
    }
    assert list(names_of(model, example_args=(x,))) == ["x", *expected]
    features = extract(model, [*expected, ""], example_args=(x,))(x)
    assert all(identical(features[name], value) for name, value in expected.items())
    assert identical(features[""], model(x))


class Doubled(Scaled):
    """Without defaults, which dynamo of torch 2.2 stumbles over."""

    def __call__(self, x):
        return super().__call__(x, 2.0, shift=1.0)


@pytest.mark.parametrize("model", [Doubled, Flipped])
@pytest.mark.parametrize("nodes", [[""], ["relu", ""], ["lin", ""], ["relu"]])
def test_M4_compiled_the_output_is_what_the_own_call_returns(backend, model, nodes):
    model, x = model(), drawn(3, 4)
    extractor = create_feature_extractor(model, nodes, backend=backend, example_args=(x,))
    expected = extractor(x)
    compiled = torch.compile(extractor, backend="eager")(x)
    assert all(identical(compiled[name], expected[name]) for name in nodes)
    if "" in nodes:
        assert identical(compiled[""], model(x))


class Counts(nn.Module):
    """Counts its calls, outside of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.calls = nn.Linear(4, 4, device=here()), 0

    def __call__(self, x):
        self.calls += 1
        return super().__call__(x) * self.calls

    def forward(self, x):
        return self.lin(x)


def test_V2_an_own_call_of_a_submodule_that_counts_is_refused_or_counts(backend, extract):
    model, x = nn.Sequential(Counts(), nn.ReLU()), drawn(3, 4)
    if backend == "fx":
        with pytest.raises(UntraceableModelError, match="calls"):
            extract(model, ["1", ""])
        return
    extractor = extract(model, ["1", ""])
    for calls in range(1, 4):
        expected = (model[0].lin(x) * calls).relu()
        assert identical(extractor(x)["1"], expected)
    assert model[0].calls == 3
