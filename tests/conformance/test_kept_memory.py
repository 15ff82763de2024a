"""Rule V1: features in memory that the model keeps, and that its next call writes."""

from __future__ import annotations

import copy

import pytest
import torch

from stateful import net
from support import identical


def buffer_itself(self, x):
    return self.last.copy_(x[0]) + 1


def view_of_a_buffer(self, x):
    self.last.copy_(x[0])
    return self.last.view(2, 2) + self.lin(x).sum()


def plain_attribute(self, x):
    return torch.mul(x[0], 3, out=self.plain) + 1


def view_of_statistics(self, x):
    seen = self.norm.running_mean.expand_as(x)
    return self.norm(x) + seen + self.lin(x)


def returned_by_a_leaf(self, x):
    return self.keeper(self.lin(x)) * 1


def view_of_what_a_leaf_keeps(self, x):
    seen = self.keeper.calls.expand_as(x)
    return self.keeper(x) + seen


LASTING = [
    (buffer_itself, ["copy_"]),
    (view_of_a_buffer, ["sum"]),
    (plain_attribute, ["mul"]),
    (view_of_statistics, ["expand_as", "norm"]),
    (returned_by_a_leaf, ["keeper"]),
    (view_of_what_a_leaf_keeps, ["expand_as", "keeper"]),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("function", "nodes"), LASTING, ids=lambda v: getattr(v, "__name__", ""))
def test_V1_a_feature_keeps_its_value_through_the_next_call(extract, function, nodes, training):
    model = net(function).train(training)
    extractor = extract(copy.deepcopy(model), [*nodes, ""])
    alone = {name: extract(copy.deepcopy(model), [name]) for name in nodes}
    for step in range(3):
        x = torch.full((3, 4), float(step)) + torch.arange(4.0)
        expected = model(x).clone()
        features = extractor(x)
        single = {name: one(x)[name] for name, one in alone.items()}
        at_once = {name: value.clone() for name, value in features.items()}
        one_by_one = {name: value.clone() for name, value in single.items()}
        assert torch.equal(features[""], expected)
        extractor(x + 7)
        model(x + 7)
        for one in alone.values():
            one(x + 7)
        assert identical(dict(features), at_once)
        assert identical(single, one_by_one)


def test_V1_a_view_of_statistics_has_the_value_from_before_the_layer_moves_them(extract):
    features = extract(net(view_of_statistics).train(), ["expand_as", "norm"])(torch.ones(3, 4))
    assert torch.equal(features["expand_as"], torch.zeros(3, 4))


def test_V1_a_leaf_whose_result_is_not_used_moves_what_is_read_later(extract):
    def function(self, x):
        self.keeper(self.lin(x))
        return self.keeper.calls + self.lin(x)

    model = net(function).eval()
    extractor, x = extract(copy.deepcopy(model), [""]), torch.ones(3, 4)
    for _ in range(2):
        assert torch.equal(extractor(x)[""], model(x))
