"""Nodes that a forward does not reach, or that are where nothing can be kept."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

import featuretap
import featuretap_hooks
from support import identical, snapshot

create = featuretap_hooks.create_feature_extractor
X = torch.ones(2, 4)


class Retries(nn.Module):
    """Calls a module again that failed the first time."""

    def __init__(self):
        super().__init__()
        self.m, self.n, self.calls = FailsFirst(), nn.Linear(4, 4), 0

    def forward(self, x):
        self.m.calls = 0
        try:
            x = self.m(x)
        except ValueError:
            x = self.m(x)
        return x * 2 if x.sum() < 100 else self.n(x)


class FailsFirst(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 1:
            raise ValueError
        return x + 1


@pytest.mark.parametrize("missing", ["n", "m", "m_2", "sub"])
def test_V5_the_error_names_the_nearest_of_all_nodes_that_were_reached(missing):
    model = Retries()
    extractor = create(model, [missing, "mul"] if missing == "sub" else [missing])
    model(X)
    before = snapshot(model)
    for _ in range(2):
        with pytest.raises(featuretap.NodeNotReachedError, match="Nearest of the [1-9]") as caught:
            extractor(X)
        assert caught.value.name == missing
        assert snapshot(model) == before
        if missing.startswith("m"):
            assert "m_1" in caught.value.suggestions


def test_N4_a_first_call_that_fails_only_later_is_the_first_all_the_same():
    class Later(Retries):
        def forward(self, x):
            self.m.calls = 0 if self.calls else 1
            try:
                return self.m(x)
            except ValueError:
                return self.m(x) * 2

    model = Later()
    extractor = create(model, "m")
    assert identical(extractor(X)["m"], X + 1)
    model.calls = 1
    with pytest.raises(featuretap.NodeNotReachedError, match="'m_1'"):
        extractor(X)


def test_V5_that_the_forward_runs_again_for_the_error_may_fail():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.done = nn.Linear(4, 4), []

        def forward(self, x):
            if self.done:
                raise ValueError
            self.done.append(1)
            return x * 2

    extractor = create(Once(), "n")
    with pytest.raises(featuretap.NodeNotReachedError, match="Nearest of the 0 nodes"):
        extractor(X)


class Batched(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.vmap(lambda t: self.l(t).sin() * 2)(x)
        return self.l(y) - 1


@pytest.mark.parametrize("node", ["mul", "sin"])
def test_V5_a_node_inside_of_a_transform_is_not_reached(node):
    for extractor in (create(Batched(), [node]), create(Batched(), [node, "sub"])):
        for _ in range(2):
            with pytest.raises(featuretap.NodeNotReachedError):
                extractor(X)


def test_N1_what_comes_out_of_a_transform_depends_on_the_inputs():
    names = featuretap_hooks.get_graph_node_names(Batched(), example_args=(X,))
    assert names[-2:] == ["l", "sub"]
    assert not {"sin", "mul", "l_1"} & {*names}
    model = Batched()
    for nodes in (["l"], ["l", "sub"], ["sub"]):
        extractor = create(model, nodes)
        for _ in range(2):
            features = extractor(X)
            assert identical(features[nodes[-1]], features[nodes[-1]])
            torch.testing.assert_close(features.get("sub", model(X)), model(X))
            assert identical(features.get("l", model(X) + 1) - 1, features.get("sub", model(X)))


def test_M4_an_extractor_inside_of_a_transform():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    extractor = create(model, ["0", "1"])
    for _ in range(2):
        batched = torch.vmap(lambda t: extractor(t)["0"])(X)
        assert torch.allclose(batched, model[0](X))
    operations = create(Adds(), ["add", "mul"])
    for _ in range(2):
        gradient = torch.func.grad(lambda t: operations(t)["mul"].sum())(X)
        assert identical(gradient, X * 2)


class Adds(nn.Module):
    def forward(self, x):
        return (x + 1) * 2


@pytest.mark.parametrize("early_stop", [True, False])
def test_M4_a_request_that_stops_early_can_be_compiled_after_one_call(early_stop):
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            y = self.l(x) + 1
            return y * 2

    extractor = create(Stops(), ["add"], early_stop=early_stop)
    expected = extractor(X)
    compiled = torch.compile(extractor, fullgraph=True, backend="eager")
    assert identical(dict(compiled(X)), dict(expected))


class LayerDrop(nn.Module):
    """Leaves out layers at random while it trains."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand([], device="cpu") > 0.5:
                x = layer(x) + 1
        return x


@pytest.mark.parametrize("name", ["layers.1", "add_2"])
def test_V5_what_the_example_left_out_at_random_may_be_reached_later(name):
    model, x = LayerDrop(), torch.ones(2, 4)
    outcomes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        extractor = featuretap_hooks.create_feature_extractor(
            model, [name], example_args=(x,), suppress_diff_warning=True
        )
        assert len(list(extractor.parameters())) == (4 if name == "layers.1" else 6)
        try:
            outcomes.add(tuple(extractor.train()(x)))
        except featuretap.NodeNotReachedError:
            outcomes.add("not reached")
        assert tuple(extractor.eval()(x)) == (name,)
    assert outcomes == {(name,), "not reached"}


class DropsALayer(nn.Module):
    """Runs a layer by chance."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) * 2 if torch.rand(1).item() < 0.5 else x * 2


def test_V5_what_another_forward_reached_is_not_said_to_be_reached():
    errors = []
    for seed in range(12):
        extractor = create(DropsALayer(), ["b"])
        torch.manual_seed(seed)
        try:
            extractor(X)
        except featuretap.NodeNotReachedError as error:
            errors.append(str(error))
    assert 0 < len(errors) < 12
    assert not any("'b'" in error.partition("Nearest")[2] for error in errors)


class ReadsSettings(nn.Module):
    """Names what lies outside of it, and changes none of it."""

    settings: ClassVar[dict[str, int]] = {}

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x) + ReadsSettings.settings.get("big", 1)


def test_C4_what_code_only_reads_outside_is_not_looked_at_in_each_call(monkeypatch):
    made = []

    class Counted(featuretap_hooks.keeping.put_back.Outside):
        def __init__(self, forwards):
            made.append(forwards)
            super().__init__(forwards)

    monkeypatch.setattr(featuretap_hooks.keeping.put_back, "Outside", Counted)
    model = ReadsSettings()
    extractor = create(model, ["lin"])
    for _ in range(3):
        assert identical(extractor(X)["lin"], model.lin(X))
    assert len(made) == 1
