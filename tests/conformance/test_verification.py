"""Rule V4: features are proved on the user's own input."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import featuretap
from featuretap import verifying
from support import identical, snapshot
from zoo import ZOO, NestedScopes

X = torch.linspace(-1, 1, 8).view(2, 4)


class LooksAtTheObject(nn.Module):
    """Nothing sees this question, but its answer is another one for a stand-in."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), Shifts())

    def forward(self, x):
        return self.block(x * 2) - 1


class Shifts(nn.Module):
    def forward(self, x):
        return x + 1 if x.contiguous() is x else x + 2


@pytest.mark.sees_operations
@pytest.mark.parametrize("name", ZOO)
def test_V4_every_node_of_the_zoo_is_proved_on_its_example(extract, name):
    model = ZOO[name]().eval()
    args = model.example()
    with torch.no_grad():
        names = list(model.reference(*args))
        model = ZOO[name]().eval()
        before = snapshot(model)
        extractor = extract(model, names, example_args=args, suppress_diff_warning=True)
        assert snapshot(model) == before
        report = featuretap.verify(extractor, model, *args)
        assert [check.node for check in report] == list(extractor.return_nodes)
        assert all(check.equal for check in report), str(report)
        assert snapshot(model) == before


@pytest.mark.sees_operations
def test_V4_fx_refuses_what_differs_and_names_the_first_node():
    model = LooksAtTheObject().eval()
    wrong = featuretap.create_feature_extractor(model, "", backend="fx")(X)[""]
    assert not identical(wrong, model(X))
    before = snapshot(model)
    with pytest.raises(featuretap.UntraceableModelError) as caught:
        featuretap.create_feature_extractor(model, "", backend="fx", example_args=(X,))
    text = str(caught.value)
    assert "in train mode 'block.1.add', in module 'block.1'" in text
    assert "by up to 1" in text
    assert "leaf_modules" in text
    assert "backend='hooks'" in text
    assert caught.value.module_path == "block.1"
    assert snapshot(model) == before


@pytest.mark.sees_operations
def test_V4_auto_serves_hooks_where_fx_differs():
    model = LooksAtTheObject().eval()
    with pytest.warns(featuretap.FallbackWarning, match=r"'block\.1\.add'") as caught:
        extractor = featuretap.create_feature_extractor(
            model, ["block.1.add", ""], example_args=(X,)
        )
    assert len(caught) == 1
    assert identical(extractor(X)[""], model(X))


def test_V4_a_mode_that_the_example_cannot_run_in_is_not_compared(extract):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    extractor = extract(model, "1", example_args=(X[:1],), suppress_diff_warning=True)
    assert identical(extractor.eval()(X)["1"], model.eval()(X))


def test_V4_an_example_that_fails_in_both_modes_is_an_error(extract):
    with pytest.raises(featuretap.UntraceableModelError, match="fails on the example inputs"):
        extract(NestedScopes(), "", example_args=(torch.ones(3),))


class FailsInEachMode(nn.Module):
    def forward(self, x):
        return x.reshape(5 if self.training else 7)


def test_V4_an_example_that_fails_says_what_each_mode_raises(extract):
    said = (
        r"in train mode: RuntimeError: shape '\[5\]' .*; in eval mode: RuntimeError: shape '\[7\]'"
    )
    with pytest.raises(featuretap.UntraceableModelError, match=said):
        extract(FailsInEachMode(), "", example_args=(X,))


def test_V4_random_draws_are_compared_from_the_same_state(extract):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    extractor = extract(model, ["1", "2"], example_args=(X,))
    before = snapshot(model)
    report = featuretap.verify(extractor, model, X)
    assert report.mode == "train"
    assert report.equal
    assert snapshot(model) == before


def broken(model):
    extractor = featuretap.create_feature_extractor(model, ["relu", "add", "lin"], backend="fx")
    for node in extractor.graph.nodes:
        if node.target is operator.add:
            node.target = operator.sub
    extractor.recompile()
    return extractor


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x.relu() + 1)


@pytest.mark.sees_operations
def test_V4_verify_shows_each_node_and_raises_on_request():
    model = Adds().eval()
    extractor = broken(model)
    report = featuretap.verify(extractor, model, X)
    assert [(check.node, check.equal) for check in report] == [
        ("relu", True),
        ("add", False),
        ("lin", False),
    ]
    assert report[1].difference == pytest.approx(2)
    assert not report.equal
    lines = str(report).splitlines()
    assert lines[0].split() == ["node", "equal", "largest", "difference"]
    assert lines[2].split() == ["relu", "yes", "0"]
    assert lines[3].split() == ["add", "NO", "2"]
    with pytest.raises(
        featuretap.DifferentValuesError, match="'add' is the first node that differs"
    ):
        report.raise_if_different()


def test_V4_without_hooks_the_outputs_of_modules_are_compared(monkeypatch):
    monkeypatch.setattr(verifying, "available_backends", lambda: ["fx"])
    model = Adds().eval()
    report = featuretap.verify(broken(model), model, X)
    assert [(check.node, check.equal) for check in report] == [
        ("relu", None),
        ("add", None),
        ("lin", False),
    ]
    assert not featuretap.verify(broken(model), model, X).equal
    sound = featuretap.create_feature_extractor(model, ["lin", ""], backend="fx")
    assert all(check.equal for check in featuretap.verify(sound, model, X))


def test_V4_an_extractor_that_raises_is_different():
    model = Adds().eval()
    extractor = featuretap.create_feature_extractor(model, "add", backend="fx")
    for node in extractor.graph.nodes:
        if node.target is operator.add:
            node.target = operator.matmul
    extractor.recompile()
    (check,) = featuretap.verify(extractor, model, X)
    assert check.equal is False
    assert "the extractor raises" in check.note


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (torch.zeros(2), torch.zeros(3), "float32 2 instead of float32 3"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "float32 2 instead of float64 2"),
        ((1, 2), (1, 2, 3), "tuple of 2 instead of tuple of 3"),
        (1, None, "int instead of NoneType"),
    ],
)
def test_V4_another_kind_of_value_is_said_in_words(one, other, words):
    check = verifying._check("a", one, {"a": other}, {"a"})
    assert (check.equal, check.difference, check.note) == (False, None, words)
    assert verifying._check("a", one, {"a": one}, {"a"}).equal


def test_V4_the_rows_of_a_report_are_in_execution_order(extract):
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Sequential(nn.Tanh()))
    other = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Sequential(nn.Tanh()))
    report = featuretap.verify(extract(model, ["0", "1.0", ""]), other, X)
    assert report.first_difference.node == "0"
    assert [line.split()[0] for line in str(report).splitlines()[2:]] == ["0", "1.0", "(output)"]


class TakesABatch(nn.Module):
    example = ({"x": torch.tensor([1.0, 2.0])},)

    def forward(self, batch):
        one, other = (batch["x"] * 2).chunk(2)
        return one + other


class ScalesByASize(nn.Module):
    example = (torch.ones(3),)

    def forward(self, x):
        return x.sum() * (2.0 * x.shape[0])


class CountsOtherwise(TakesABatch):
    """As the first, but a stand-in makes it add up something else."""

    def forward(self, batch):
        one, other = (batch["x"] * 2).chunk(2)
        return one + other if one.contiguous() is one else one + other * 2


@pytest.mark.parametrize("kind", [TakesABatch, ScalesByASize])
@pytest.mark.parametrize("serving", ["auto", "fx"])
def test_N8_V4_an_example_does_not_change_what_a_name_means(kind, serving):
    model, args = kind(), kind.example
    names = featuretap.get_graph_node_names(model, backend=serving, example_args=args)
    for name in names:
        plain = featuretap.create_feature_extractor(model, [name], backend=serving)
        proved = featuretap.create_feature_extractor(
            model, [name], backend=serving, example_args=args
        )
        assert identical(plain(*args)[name], proved(*args)[name])


@pytest.mark.sees_operations
def test_V4_what_is_named_otherwise_and_differs_is_refused():
    args = TakesABatch.example
    for name in ("getitem_2", "add", ""):
        with pytest.raises(featuretap.UntraceableModelError, match="another forward"):
            featuretap.create_feature_extractor(
                CountsOtherwise(), [name], backend="fx", example_args=args
            )


@pytest.mark.sees_operations
def test_V4_values_that_cannot_be_compared_are_said_to_be_unknown(extract):
    with FakeTensorMode():
        model, x = TakesABatch(), torch.ones(2)
        extractor = extract(model, ["mul"], example_args=({"x": x},))
        assert extractor({"x": x})["mul"].shape == (2,)
        report = featuretap.verify(extractor, model, {"x": x})
    assert [check.equal for check in report] == [None]
    assert "cannot be compared" in str(report)


def test_V4_a_report_that_compared_nothing_is_not_equal():
    extractor = featuretap.create_feature_extractor(Adds().eval(), "lin", backend="fx")
    report = featuretap.verify(extractor, nn.Sequential(nn.Linear(4, 4)).eval(), X)
    assert [check.equal for check in report] == [None]
    assert not report.equal
    with pytest.raises(featuretap.DifferentValuesError, match="no node could be compared"):
        report.raise_if_different()


def test_V4_what_is_no_extractor_cannot_be_verified():
    model = Adds().eval()
    extractor = featuretap.create_feature_extractor(model, "lin", backend="fx")
    with pytest.raises(
        TypeError, match="^Adds is no extractor: pass what create_feature_extractor"
    ):
        featuretap.verify(model, extractor, X)


def test_API_verify_takes_arguments_of_any_name(extract):
    class Net(nn.Module):
        def forward(self, x, model=None, extractor=None):
            return x + 1 if model is None else x + model

    model, x = Net(), torch.ones(2, 4)
    extractor = extract(model, ["add", ""])
    assert featuretap.verify(extractor, model, x, model=None).equal
    with pytest.raises(TypeError, match="type is no extractor"):
        featuretap.verify(type(extractor), model, x)
