"""Rule N9: what a forward calculates with sizes has the same names on both backends, or fx refuses."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import featuretap
from support import drawn, identical, with_forward


def in_pairs(self, x):
    quotient, rest = divmod(x.shape[-1], 3)
    first, second = divmod(7, x.shape[0])
    return x * quotient + rest - first * second


def to_a_power(self, x):
    return x * pow(x.shape[1], 2, 5) + x.shape[0] ** 2


def rounded(self, x):
    return x * round(x.shape[-1] / 3) + round(x.shape[-1] / 3, 1) + abs(x.shape[0] - 9)


def by_methods(self, x):
    n = x.shape[-1]
    return x * n.bit_length() + n.real + n.numerator + (n / 2).conjugate()


def by_functions(self, x):
    return (
        x * math.prod([x.shape[0], x.shape[1]]) + math.floor(x.shape[-1] / 3) + math.gcd(6, x.dim())
    )


def by_other_names(self, x):
    return x * x.nelement() + x.ndimension() + x.numel() + x.dim()


def with_a_sign(self, x):
    return (+x) * 2 + torch.positive(x * 3) + +x.shape[0]


def in_the_same_layout(self, x):
    ones = torch.ones(4, layout=x.layout, dtype=x.dtype, device=x.device)
    return x @ ones + x.mT.sum()


def compared(self, x):
    return x * (x.shape[-1] > 3) + (x.shape[0] == 3)


@pytest.mark.filterwarnings("ignore:.*mode:UserWarning")
@pytest.mark.parametrize(
    "function",
    [
        *(in_pairs, to_a_power, rounded, by_methods, by_functions),
        *(by_other_names, with_a_sign, in_the_same_layout, compared),
    ],
    ids=lambda function: function.__name__,
)
def test_N9_what_is_calculated_with_sizes_has_one_name(backend, extract, function):
    model, x = with_forward(function), drawn(3, 4)
    names = [
        featuretap.get_graph_node_names(model, backend=one, example_args=(x,)) for one in backends()
    ]
    assert names[0] == names[-1]
    features = extract(model, [*names[0], ""])(x)
    assert identical(features[""], model(x))
    assert identical(features[names[0][-1]], model(x))


def backends():
    try:
        import featuretap_hooks  # noqa: F401
    except ImportError:
        return ["fx"]
    return ["fx", "hooks"]


def a_sum_of_answers(self, x):
    return x * (1 + (x.shape[1] > 3)) + 10


def two_answers(self, x):
    return x + ((x.shape[1] > 3) & (x.shape[0] > 2))


def a_flag(self, x):
    return torch.ones(4, requires_grad=x.requires_grad).to(x) * x


def its_version(self, x):
    y = x * 2
    before = y._version
    y.add_(1)
    return y * (y._version - before)


REFUSED = {
    a_sum_of_answers: "calculates with the answer to a comparison of sizes",
    two_answers: "calculates with the answer to a comparison of sizes",
    a_flag: r"hands on \.requires_grad of a value",
    its_version: r"looks at \._version",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_N9_fx_refuses_what_the_real_forward_would_name_otherwise(backend, extract, function):
    model, x = with_forward(function), drawn(3, 4)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match=REFUSED[function]):
            extract(model, "")
    else:
        assert identical(extract(model, "")(x)[""], model(x))


@dataclass
class Both:
    one: torch.Tensor
    other: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.other = self.one * 2

    def total(self):
        return self.one + self.other


class Dynamic(nn.Module):
    def forward(self, x):
        return Both(x.tanh()) if x.sum() > -1e9 else None


def total_of_a_leaf(self, x):
    return self.own(x).total() + 10


def test_N2_a_method_of_what_only_the_real_forward_knows_is_no_node(backend, extract):
    model, x = with_forward(total_of_a_leaf, own=Dynamic()), drawn(3)
    if backend == "fx":
        with pytest.raises(
            featuretap.UntraceableModelError, match=r"calls \.total\(\) of an object"
        ):
            extract(model, "add")
    else:
        assert identical(extract(model, "add_1")(x)["add_1"], model(x))


def test_N6_a_dataclass_with_a_field_that_is_not_given_is_returned_as_it_is(extract):
    def forward(self, x):
        return Both(x.tanh())

    model, x = with_forward(forward), drawn(3)
    value = extract(model, "")(x)[""]
    assert identical(value.one, model(x).one)
    assert identical(value.other, model(x).other)


def test_N2_a_forward_that_is_a_property_has_its_own_scope(extract):
    class Chooses(nn.Module):
        @property
        def forward(self):
            return self.plain

        def plain(self, x):
            return x.tanh() + 2

    model, x = with_forward(lambda self, x: self.own(x) + 1, own=Chooses()), drawn(3)
    for _ in range(2):
        features = extract(model, ["own", "own.tanh", "add"], example_args=(x,))(x)
        assert identical(features["own"], x.tanh() + 2)
        assert identical(features["own.tanh"], x.tanh())
        assert identical(features["add"], model(x))


def test_N2_layers_that_nobody_registered_belong_to_who_calls_them(extract):
    def forward(self, x):
        y = self.own[:2](x)
        return self.own[2:](y) + operator.itemgetter(0)(self.acts)(x) + nn.Dropout(0.5)(y)

    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model, x = with_forward(forward, own=own), drawn(3, 4)
    model.acts = [nn.ReLU()]
    extractor = extract(model, ["own.0", "own.1", "own.2", "relu", "dropout", ""])
    for seed in range(2):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        features = extractor(x)
        assert identical(features[""], expected)
        assert identical(features["own.1"], own[:2](x))
        assert identical(features["relu"], x.relu())


DOUBLED = {tuple: 2, torch.Size: 3, int: 5}


def asks_for_types(self, x):
    both, size, number = x.max(1), x.shape, x.shape[0]
    y = x * (2 if type(both) is torch.return_types.max else 3)
    y = y * DOUBLED.get(type(size), 7) * DOUBLED.get(type(number), 7)
    return y * DOUBLED.get(type(x.split(2)), 7) + both[0].sum()


@pytest.mark.only("hooks", why="fx refuses types as keys, and named tuples")
def test_V1_type_answers_for_a_watched_size_as_for_the_real_one(extract):
    model, x = with_forward(asks_for_types), drawn(3, 4)
    for nodes in ([""], ["mul", "mul_3", ""]):
        extractor = extract(model, nodes)
        for _ in range(2):
            assert identical(extractor(x)[""], model(x))
        assert "type" not in globals()
