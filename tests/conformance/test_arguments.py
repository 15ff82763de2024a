"""Rules V1 and V2: what the forward does to its arguments, which the caller knows, too."""

from __future__ import annotations

import enum

import pytest
import torch
from torch import nn

import featuretap
from support import copied, identical, with_forward


def writes_and_reads_another(self, x, y):
    x.mul_(2)
    return y + 0


def appends(self, items):
    items.append(items[0] * 2)
    return items[-1] + 0


def adds_items(self, items):
    items += [items[0] * 2]
    return items[-1] + 0


def merges(self, items):
    items |= {1: items[0] * 2}
    return items[1] + 0


def longer(self, x):
    parts = x.chunk(2)
    parts += (x * 2,)
    return parts[2] + 0


@pytest.mark.parametrize("request_", [["x", "add"], ["add"], ["x", "mul_", "add"]])
def test_V1_V2_an_input_that_is_requested_and_written_stays_what_the_caller_gave(extract, request_):
    extractor = extract(with_forward(writes_and_reads_another), request_)
    for _ in range(2):
        given = torch.ones(2)
        features = extractor(given, given)
        assert given.tolist() == [2, 2]
        assert features["add"].tolist() == [2, 2]
        assert features.get("x", torch.ones(2)).tolist() == [1, 1]
        whole = torch.ones(3)
        assert extractor(whole[:2], whole[1:])["add"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (appends, lambda: [torch.ones(2)]),
        (adds_items, lambda: [torch.ones(2)]),
        (merges, lambda: {0: torch.ones(2)}),
        (longer, lambda: torch.ones(2)),
    ],
    ids=["append", "+=", "|=", "tuple"],
)
@pytest.mark.parametrize("with_input", [False, True])
def test_V2_a_container_that_grows_in_place_grows_for_the_caller(
    extract, function, made, with_input
):
    model = with_forward(function)
    name = "x" if function is longer else "items"
    extractor = extract(model, [*([name] if with_input else []), ""])
    for _ in range(2):
        given, expected = made(), made()
        output = model(expected)
        features = extractor(given)
        assert identical(features[""], output)
        assert identical(copied(given), copied(expected))
        if with_input:
            assert identical(copied(features[name]), copied(made()))


class Way(enum.Enum):
    """Which way a forward goes."""

    LEFT = 1
    RIGHT = 2


def by_member(self, x, way=Way.LEFT):
    return self.layer(x) * 2 if way is Way.LEFT else x + 1


def by_dtype(self, x, dtype=torch.float32):
    return self.layer(x) * 2 if dtype is torch.float32 else x + 1


@pytest.mark.parametrize("forward", [by_member, by_dtype])
def test_V2_a_default_that_is_compared_by_identity_chooses_the_branch(backend, extract, forward):
    model, x = with_forward(forward, layer=nn.Linear(4, 4)), torch.ones(2, 4)
    extractor = extract(model, "")
    assert identical(extractor(x)[""], model(x))
    other = Way.RIGHT if forward is by_member else torch.float64
    if backend == "fx":
        with pytest.raises(ValueError, match="made for"):
            extractor(x, other)
    else:
        assert identical(extractor(x, other)[""], model(x, other))


class Chooses(nn.Module):
    """Which layer runs is an argument, and whether the result is doubled."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, layer="a", double=False):
        x = self.a(x) if layer == "a" else self.b(x)
        return x * 2 if double else x


@pytest.mark.parametrize("example", [None, (torch.ones(2, 4),)])
@pytest.mark.parametrize("fixed", [{"layer": "b"}, {"layer": "b", "double": True}])
def test_C2_an_argument_that_was_fixed_is_fixed_on_each_backend(backend, extract, fixed, example):
    model, x = Chooses().eval(), torch.randn(2, 4)
    given = {"concrete_args": fixed, "example_args": example}
    names = featuretap.get_graph_node_names(
        model, backend=backend, concrete_args=fixed, example_args=(x,)
    )
    assert list(names) == ["x", "layer", "double", "b", *(["mul"] if "double" in fixed else [])]
    extractor = extract(model, ["b", ""], **given)
    for _ in range(2):
        features = extractor(x)
        assert identical(features["b"], model.b(x))
        assert identical(features[""], model(x, **fixed))
        assert identical(extractor(x, **fixed)[""], model(x, **fixed))
    assert identical(copied(extractor)(x)[""], model(x, **fixed))
    report = featuretap.verify(extractor, model, x)
    assert report.equal, report


@pytest.mark.parametrize("given", ["x", "y"])
def test_C2_of_optional_arguments_those_that_are_not_fixed_are_inputs(extract, given):
    def first_of(self, x=None, y=None):
        return self.lin(y if x is None else x) + 1

    model, x = with_forward(first_of, lin=nn.Linear(4, 4)), torch.randn(2, 4)
    extractor = extract(model, ["add"], concrete_args={"y" if given == "x" else "x": None})
    assert identical(extractor(**{given: x})["add"], model(**{given: x}))


class TakesOptions(nn.Module):
    def forward(self, x, mask=None, **options):
        y = x + 1
        if mask is not None:
            y = y * mask
        for value in options.values():
            y = y - value
        return y.relu()


X = torch.ones(2, 4)
EXAMPLES = {
    "mask": (
        ((X, X), {}),
        ["x", "mask", "add", "mul", "relu"],
        "mask=None, .* mask=a tensor of shape",
    ),
    "options": (
        ((X,), {"a": X}),
        ["x", "mask", "add", "sub", "relu"],
        r"\(\*\*options\), .* have a\.",
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_E2_V4_names_are_those_of_the_example_or_it_is_refused(backend, names_of, extract, example):
    (args, kwargs), names, refusal = EXAMPLES[example]
    model, given = TakesOptions(), {"example_args": args, "example_kwargs": kwargs}
    if backend == "fx":
        for ask in (names_of, lambda *a, **k: extract(a[0], "relu", **k)):
            with pytest.raises(featuretap.UntraceableModelError, match=refusal) as caught:
                ask(model, **given)
            assert "Ways out" in str(caught.value)
        return
    assert list(names_of(model, **given)) == names
    with pytest.warns(featuretap.FallbackWarning, match=refusal):
        assert list(featuretap.get_graph_node_names(model, **given)) == names
