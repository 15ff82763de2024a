"""``backend="auto"``: fx where it can serve, else hooks, and it says so once."""

from __future__ import annotations

import pickle
import random
import re
import warnings

import pytest
import torch
from torch import nn

import featuretap
from support import identical
from zoo import NestedScopes

X = torch.ones(2, 4)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            x = x * 2
        return self.lin(x) + 1


def create(model, nodes, **kwargs):
    return featuretap.create_feature_extractor(model, nodes, **kwargs)


def test_API_auto_is_fx_where_fx_can_serve():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(create(NestedScopes(), ["stage.0.lin"]), torch.fx.GraphModule)


def test_API_auto_is_hooks_where_the_root_cannot_be_traced_and_says_where():
    model = Branches()
    with pytest.warns(featuretap.FallbackWarning) as caught:
        extractor = create(model, ["mul", "lin"])
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "the hooks backend does" in text
    assert "Branches.forward" in text
    assert re.search(r"test_auto\.py:\d+", text)
    features = extractor(X)
    assert identical(features["mul"], X * 2)
    assert identical(features["lin"], model.lin(X * 2))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.lin(x) * self.calls


class DrawsElsewhere(nn.Module):
    def forward(self, x):
        return x * random.random()


class TakesAnyNumber(nn.Module):
    def forward(self, *x):
        return x[0] * 2


@pytest.mark.parametrize("kind", [Counts, DrawsElsewhere, TakesAnyNumber])
def test_E2_the_warning_says_where_the_forward_is_if_no_line_is_to_blame(kind):
    with pytest.warns(featuretap.FallbackWarning) as caught:
        create(kind(), "mul")
    line = kind.forward.__code__.co_firstlineno
    assert f"{kind.__name__}.forward at {__file__}:{line}: " in str(caught[0].message)


class Sometimes(Counts):
    def forward(self, x):
        self.calls += 1
        return x.exp() if self.calls > 5 else self.lin(x)


@pytest.mark.parametrize("way", ["hooks", "auto"])
def test_API_the_options_of_hooks_are_those_of_featuretap(way):
    """What a message of hooks advises can be done without another import."""
    options = {"backend": way, "suppress_diff_warning": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", featuretap.FallbackWarning)
        extractor = create(Sometimes(), ["lin", "exp"], missing="skip", **options)
        assert list(extractor(X)) == ["lin"]
        extractor = create(Sometimes(), ["lin", "exp"], **options)
        with pytest.raises(featuretap.NodeNotReachedError, match="missing='skip'"):
            extractor(X)
        for early_stop in (True, False):
            model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            create(model, "0", early_stop=early_stop, backend=way)(X)
            assert model[1].num_batches_tracked == (not early_stop)


def test_API_fx_has_no_use_for_the_options_of_hooks():
    for options in ({"missing": "skip"}, {"early_stop": False}):
        with pytest.raises(ValueError, match="are for the hooks backend"):
            create(NestedScopes(), "mul", backend="fx", **options)
        create(NestedScopes(), "mul", backend="auto", **options)


def test_API_auto_serves_a_node_inside_an_auto_leaf_by_hooks():
    model = nn.Sequential(nn.Linear(4, 4), Branches())
    create(model, ["1"])  # an auto leaf as a whole is fx's
    with pytest.warns(featuretap.FallbackWarning, match="fx cannot look into '1'") as caught:
        extractor = create(model, ["1.lin", "1"])
    assert len(caught) == 1
    assert identical(extractor(X)["1"], extractor(X)["1.lin"] + 1)


def test_E1_auto_does_not_fall_back_for_a_mistyped_name():
    with pytest.raises(featuretap.NodeNotFoundError, match=r"Did you mean 'stage\.0\.lin'"):
        create(NestedScopes(), "stage.0.lim")


class ReadsParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        dtype = next(p.dtype for p in self.parameters() if p.is_floating_point())
        return self.lin(x.to(dtype))


def test_API_auto_serves_by_hooks_what_fx_does_not_record_if_there_is_an_example():
    model = ReadsParameters()
    with pytest.warns(featuretap.FallbackWarning, match="'is_floating_point' is no node"):
        extractor = create(model, ["is_floating_point", "lin"], example_args=(X,))
    features = extractor(X)
    assert features["is_floating_point"] is True
    assert identical(features["lin"], model(X))
    with pytest.raises(featuretap.NodeNotFoundError, match=r"'ln' .*'lin'"):
        create(model, ["ln"], example_args=(X,))


def test_API_auto_is_hooks_where_fx_has_one_mode_only():
    class OnlyEval(nn.Module):
        def forward(self, x):
            if self.training and x.sum() > 0:
                return x * 2
            return x + 1

    with pytest.warns(featuretap.FallbackWarning, match="no train mode"):
        extractor = create(OnlyEval(), "")
    assert identical(extractor(X)[""], X * 2)
    assert identical(extractor.eval()(X)[""], X + 1)


def test_errors_with_all_they_know_can_be_pickled():
    error = featuretap.NodeNotFoundError("text", "name", ["near"], "inside 'a'")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.name, copy.suggestions, copy.hidden) == ("name", ("near",), "inside 'a'")


def test_N6_auto_serves_a_module_inside_an_ordinary_leaf_by_hooks():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    name = "0.parametrizations.weight.0"
    with pytest.warns(featuretap.FallbackWarning, match="inside the leaf module '0'"):
        extractor = create(model, [name, "0"])
    features = extractor(X)
    assert identical(features[name], model[0].weight)
    assert identical(features["0"], model[0](X))


def test_E1_no_backend_names_what_an_attention_layer_keeps_to_itself():
    model = nn.Sequential(nn.TransformerEncoderLayer(4, 2))
    with pytest.raises(featuretap.NodeNotFoundError, match=r"Did you mean '0'"):
        create(model, ["0.self_attn.out_proj"])


class OnlyDefaults(nn.Module):
    """Takes its input as an argument that has a default, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, pixel_values=None, mask=None):
        return self.lin(pixel_values) if mask is None else mask


def test_API_auto_serves_by_hooks_where_each_argument_would_be_its_default():
    model = OnlyDefaults()
    with pytest.warns(featuretap.FallbackWarning, match="pixel_values=None, mask=None"):
        extractor = create(model, ["lin"])
    assert identical(extractor(pixel_values=X)["lin"], model.lin(X))
    with pytest.raises(featuretap.UntraceableModelError, match="concrete_args"):
        create(model, ["lin"], backend="fx")
    given = create(model, ["pixel_values"], backend="fx", concrete_args={"pixel_values": None})
    assert given()["pixel_values"] is None


def test_E1_a_name_that_fx_alone_lists_says_why_fx_cannot_serve_it():
    class AsksWhetherItIsTheSame(nn.Module):
        def forward(self, x):
            # Of a stand-in, the answer is no.
            return x * 2 if x.contiguous() is x else x + 1

    model = AsksWhetherItIsTheSame()
    assert "add" in featuretap.get_graph_node_names(model)
    with pytest.raises(featuretap.NodeNotFoundError, match="'add' is no node") as caught:
        create(model, ["add"], example_args=(X,))
    assert "records another forward than the real one" in str(caught.value.__cause__)
