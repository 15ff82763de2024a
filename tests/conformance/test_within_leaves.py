"""Rules N1, N2, N4, N9: what attention layers and functions hold, and what only looks like a leaf."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap
from support import drawn, here, identical, with_forward

HOOKS_ONLY = pytest.mark.only("hooks", why="fx cannot see what a function does with a module")


def layer(kind=nn.TransformerEncoderLayer):
    return kind(8, 2, 16, batch_first=True)


def calls_layers_one_by_one(self, x):
    for inner in self.part.layers:
        x = inner(x) + 1
    return x


def calls_a_projection(self, x):
    return self.part.out_proj(x) + 1


class OwnForward(nn.TransformerEncoderLayer):
    def forward(self, x):
        attended, _ = self.self_attn(x, x, x)
        return x + self.linear2(self.linear1(attended).relu())


class OfTorch(nn.TransformerEncoderLayer):
    def forward(self, x):
        return super().forward(x) * 2


PAST = {
    "layers": (calls_layers_one_by_one, lambda: nn.TransformerEncoder(layer(), 2)),
    "projection": (calls_a_projection, lambda: nn.MultiheadAttention(8, 2, batch_first=True)),
    "own_forward": (lambda self, x: self.part(x) + 1, lambda: layer(OwnForward)),
    "forward_of_torch": (lambda self, x: self.part(x) + 1, lambda: layer(OfTorch)),
}
NAMES = {
    "layers": ["x", "part.layers.0", "add", "part.layers.1", "add_1"],
    "projection": ["x", "part.out_proj", "add"],
    "own_forward": [
        *("x", "part.self_attn", "part.getitem", "part.getitem_1", "part.linear1"),
        *("part.relu", "part.linear2", "part.add", "add"),
    ],
    "forward_of_torch": ["x", "part", "add"],
}
# Not by hooks, which would turn the fused path off.
VALUES = {
    "layers": lambda part, x: ("part.layers.1", part.layers[1](part.layers[0](x) + 1)),
    "projection": lambda part, x: ("part.out_proj", part.out_proj(x)),
    "own_forward": lambda part, x: ("part.linear1", part.linear1(part.self_attn(x, x, x)[0])),
    "forward_of_torch": lambda part, x: ("part", part(x)),
}


def past(which):
    torch.manual_seed(0)
    forward, make = PAST[which]
    return with_forward(forward, part=make()).eval()


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")
@pytest.mark.parametrize("which", PAST)
def test_n1_what_is_called_past_an_attention_layer_is_a_node(names_of, which):
    model, x = past(which), drawn(2, 3, 8)
    assert list(names_of(model, example_args=(x,))) == NAMES[which]


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")
@pytest.mark.parametrize("example", [False, True])
@pytest.mark.parametrize("which", PAST)
def test_n9_what_is_called_past_an_attention_layer_has_its_value(extract, which, example):
    model, x = past(which), drawn(2, 3, 8)
    # Without gradients, which is where the fused path is.
    with torch.no_grad():
        real = model(x)
        kwargs = {"example_args": (x,)} if example else {}
        features = extract(model, [*NAMES[which], ""], **kwargs)(x)
        name, value = VALUES[which](model.part, x)
    assert identical(features[""], real)
    assert identical(features[name], value)


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")
@pytest.mark.parametrize("example", [False, True])
def test_api_a_type_matches_layers_that_are_called_past_an_attention_layer(extract, example):
    kwargs = {"example_args": (drawn(2, 3, 8),)} if example else {}
    features = extract(past("layers"), {nn.TransformerEncoderLayer}, **kwargs)(drawn(2, 3, 8))
    assert list(features) == ["part.layers.0", "part.layers.1"]


class TakesAMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = layer()

    def forward(self, x, mask):
        return self.part(x, src_key_padding_mask=mask) * 2


@pytest.mark.filterwarnings("ignore:Converting mask")  # torch 2.0 converts its own
def test_v1_a_layer_that_is_given_a_mask_takes_the_path_that_it_takes_unwatched(extract):
    torch.manual_seed(0)
    inner = TakesAMask()
    model = with_forward(lambda self, x, mask: self.inner(x, mask) + 1, inner=inner).eval()
    x, mask = drawn(3, 5, 8), drawn(3, 5) > 1
    mask[:, 0] = False
    with torch.no_grad():
        real, extractor = model(x, mask), extract(model, ["inner.mul", ""])
        for _ in range(3):
            features = extractor(x, mask)
            assert identical(features[""], real)
            assert identical(features["inner.mul"], inner(x, mask))


def disable(function):
    # Torch 2.0 has no such name.
    return torch.compiler.disable(function) if hasattr(torch, "compiler") else function


@disable
def uncompiled(layer, x):
    return layer(x) * 2


class Uncompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    @disable
    def before(self, x):
        return self.lin(x) * 2

    def forward(self, x):
        return self.lin(self.before(x) + 1) * 3


def calls_an_uncompiled_function(self, x):
    return self.lin(uncompiled(self.lin, x) + 1) * 3


@pytest.mark.parametrize("is_method", [True, False])
def test_n4_what_is_kept_from_the_compiler_is_looked_into(names_of, extract, is_method):
    torch.manual_seed(0)
    function = with_forward(calls_an_uncompiled_function, lin=nn.Linear(4, 4))
    model, x = (Uncompiled() if is_method else function).eval(), drawn(2, 4)
    assert names_of(model, example_args=(x,)) == ["x", "lin", "mul", "add", "lin_1", "mul_1"]
    features = extract(model, ["lin", "mul", "lin_1"])(x)
    assert identical(features["mul"], model.lin(x) * 2)
    assert identical(features["lin_1"], model.lin(model.lin(x) * 2 + 1))


def applied(inner, x):
    return inner(x) * 2


def gives_a_module_away(self, x):
    return applied(self.lin, x) * 3


GIVEN = {"autowrap_functions": [applied]}


@HOOKS_ONLY
def test_n1_a_function_of_the_callers_is_one_node_though_it_calls_a_layer(names_of, extract):
    model, x = with_forward(gives_a_module_away, lin=nn.Linear(4, 4)).eval(), drawn(2, 4)
    assert names_of(model, tracer_kwargs=GIVEN, example_args=(x,)) == ["x", "lin", "applied", "mul"]
    features = extract(model, ["applied", "mul"], tracer_kwargs=GIVEN)(x)
    assert identical(features["mul"], applied(model.lin, x) * 3)


@pytest.mark.only("fx", why="hooks see what a function does with a module")
def test_e2_a_module_that_is_given_to_a_function_of_the_callers_is_refused(extract):
    model = with_forward(gives_a_module_away, lin=nn.Linear(4, 4)).eval()
    with pytest.raises(featuretap.UntraceableModelError, match="a module is given to a function"):
        extract(model, ["mul"], tracer_kwargs=GIVEN)


@pytest.mark.sees_operations
def test_e2_such_a_request_falls_back_with_the_reason():
    model, x = with_forward(gives_a_module_away, lin=nn.Linear(4, 4)).eval(), drawn(2, 4)
    with pytest.warns(featuretap.FallbackWarning, match="a module is given to a function"):
        served = featuretap.create_feature_extractor(model, ["mul"], tracer_kwargs=GIVEN)
    assert identical(served(x)["mul"], applied(model.lin, x) * 3)


def test_api_a_function_as_default_argument_is_what_it_is(extract):
    model = with_forward(lambda self, x, act=torch.tanh: act(x) * 2).eval()
    features = extract(model, ["tanh", "mul"])(drawn(3))
    assert identical(features["mul"], torch.tanh(drawn(3)) * 2)


def test_e1_a_function_of_init_is_known_without_an_example(extract):
    def forward(self, x):
        y = x.detach() * 1
        nn.init.constant_(y, 2.0)
        return y + 1

    features = extract(with_forward(forward).eval(), ["constant_"])(drawn(3))
    assert identical(features["constant_"], torch.full((3,), 2.0, device=here()))
