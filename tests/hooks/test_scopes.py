"""Rules N where the real forward is watched: which call it is, and in whose scope."""

from __future__ import annotations

import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import drawn, identical
from zoo import NestedScopes

create = featuretap_hooks.create_feature_extractor
X = drawn(2, 4)


def test_N4_trap42_calls_in_a_loop_of_unknown_length():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(int(x.shape[0])):
                x = self.lin(x)
            return x

    model = Loop()
    features = create(model, ["lin", "lin_1"])(X)
    assert identical(features["lin_1"], model.lin(model.lin(X)))
    extractor = create(model, ["lin", "lin_2"], missing="skip")
    assert list(extractor(X)) == ["lin"]
    assert list(extractor(torch.cat([X, X]))) == ["lin", "lin_2"]


def test_N2_an_exception_that_the_model_handles_closes_its_scope():
    class Handles(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails = Raises()

        def forward(self, x):
            try:
                x = self.fails(x)
            except ValueError:
                x = x - 1
            return x * 2

    class Raises(nn.Module):
        def forward(self, x):
            x = x + 1
            raise ValueError

    model = Handles()
    names = featuretap_hooks.get_graph_node_names(model, example_args=(X,))
    assert names == ["x", "fails.add", "sub", "mul"]
    extractor = create(model, ["sub", "mul"])
    for _ in range(2):
        assert identical(extractor(X)["mul"], (X - 1) * 2)


def test_N6_the_first_call_of_a_module_that_calls_itself_is_the_outermost():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x, depth=0):
            y = self.lin(x)
            return self(y, depth + 1) * 2 if depth < 2 else y

    model = nn.Sequential(Recursive(), nn.Identity())
    expected = model[0](X)
    for nodes in (["0"], ["0", "0_1"], ["0", ""]):
        extractor = create(model, nodes)
        for _ in range(2):
            assert identical(extractor(X)["0"], expected)
    alone = create(model[0], "")
    assert identical(alone(X)[""], expected)


def test_N1_what_a_users_hook_does_is_the_inside_of_its_module():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return self.lin(x) + 1

    model = Adds()
    used = create(model, ["add", ""])
    used(X)
    model.lin.register_forward_pre_hook(lambda module, args: (args[0] + 5,))
    for extractor in (used, create(model, ["add", ""])):
        for _ in range(2):
            assert identical(extractor(X)["add"], model(X))


def test_API_without_an_example_inputs_and_modules_are_listed():
    assert featuretap_hooks.get_graph_node_names(NestedScopes()) == [
        *["x", "stage", "stage.0", "stage.0.lin", "stage.0.act"],
        *["stage.1", "stage.1.lin", "stage.1.act"],
    ]


class Broadcast(nn.Module):
    """Takes sizes from the outside, and computes with them."""

    def forward(self, x, size):
        return x.new_ones(size) * (size[0] + 1), x


class TakesSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Broadcast()

    def forward(self, x):
        return self.inner(x * 2, x.shape)[0] + 1


def test_N9_sizes_that_come_from_another_scope_are_nodes_also_where_one_scope_is_watched():
    model, example = TakesSizes(), (X,)
    names = [
        name
        for name in featuretap_hooks.get_graph_node_names(model, example_args=example).eval
        if name.startswith("inner.")
    ]
    assert names == featuretap_names(model, "inner.")
    for args in (None, example):
        together = create(model, names, example_args=args)(X)
        for name in names:
            alone = create(model, [name], example_args=args)
            assert identical(alone(X)[name], together[name]), (name, args)


def featuretap_names(model, start):
    return [name for name in featuretap.get_graph_node_names(model) if name.startswith(start)]
