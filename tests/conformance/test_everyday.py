"""Rules N5, N9, V3, E1: what programs of every day do, and once gave another answer on each backend."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import featuretap
from support import drawn, identical
from zoo import linear

X = torch.ones(2, 4)


class Overwritten(nn.Module):
    """A layer, and a sum, that the next statement writes in place."""

    def __init__(self, inplace):
        super().__init__()
        self.lin, self.norm, self.act = linear(1), nn.BatchNorm1d(4), nn.ReLU(inplace)
        self.head, self.inplace = linear(2), inplace

    def forward(self, x):
        x = self.act(self.norm(self.lin(x)))
        y = x * 3
        y = y.sigmoid_() if self.inplace else y.sigmoid()
        return self.head(y)


@pytest.mark.parametrize("node", ["norm", "mul"])
def test_V3_gradients_of_the_output_reach_a_feature_that_is_overwritten(extract, node):
    model, plain = Overwritten(True).eval(), Overwritten(False).eval()
    plain.load_state_dict(model.state_dict())
    x = drawn(3, 4)
    expected = extract(plain, [node, ""])(x)
    (gradient,) = torch.autograd.grad(expected[""].sum(), expected[node])
    extractor = extract(model, [node, ""])
    for _ in range(3):
        features = extractor(x)
        features[node].retain_grad()
        features[""].sum().backward()
        assert identical(features, expected)
        assert identical(features[node].grad, gradient)


class WritesData(nn.Module):
    """A layer keeps for its gradient what is then written through a view, so that autograd sees nothing."""

    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = x * 1
        z = self.lin(y)
        w = y.view(4, -1)
        w.data.add_(1)
        return z.sum() * w


@pytest.mark.parametrize("node", ["mul", "lin", "view", "mul_1"])
def test_V3_what_is_asked_for_does_not_change_the_gradients_of_the_output(extract, node):
    model, x = WritesData(), drawn(4, 4)
    expected = torch.autograd.grad(model(x).sum(), model.lin.weight)
    values = {"mul": x, "lin": model.lin(x), "view": x, "mul_1": model(x)}
    extractor = extract(model, [node, ""])
    for _ in range(3):
        features = extractor(x)
        assert identical(torch.autograd.grad(features[""].sum(), model.lin.weight), expected)
        assert identical(features[node].detach(), values[node].detach())


class TwoNames(nn.Module):
    """What is written in place is known by another name, which must see it."""

    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        y = self.lin(x) * 2
        flat = y.view(-1)
        z = [y, y + 1]
        y.relu_()
        return flat.sum() + z[0].sum() + z[1].sum()


@pytest.mark.parametrize("node", ["mul", "view", "add"])
def test_V2_what_has_another_name_is_written_under_all_of_them(extract, node):
    model, x = TwoNames().eval(), drawn(3, 4)
    expected = model(x)
    extractor = extract(model, [node, "mul", "lin", ""])
    before = model.lin(x) * 2
    for _ in range(3):
        features = extractor(x)
        assert identical(features[""], expected)
        assert identical(features["mul"], before)


@dataclasses.dataclass
class Found:
    hidden: torch.Tensor
    scores: torch.Tensor


class Opaque(nn.Module):
    """Branches on a size, so that fx cannot look into it."""

    def __init__(self, kind):
        super().__init__()
        self.lin, self.kind = linear(3), kind

    def forward(self, x):
        if x.shape[0] > 100:
            raise ValueError("too long")
        y = self.lin(x)
        return self.kind(y, y.softmax(-1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = Opaque(lambda *values: values), linear(4)

    def forward(self, x):
        found = self.inner(x)
        return (self.out(found[0]),) + found[1:]  # noqa: RUF005


class TakesApart(nn.Module):
    def __init__(self):
        super().__init__()
        self.att, self.last = Attention(), Opaque(Found)

    def forward(self, x):
        outputs = self.att(x)
        y = self.last(outputs[0]).hidden
        return y[:, 0] + x.mT[0]


def test_N9_what_takes_apart_the_tuple_of_a_module_is_a_node_of_no_backend(extract, backend):
    model, x = TakesApart().eval(), drawn(3, 4)
    hidden = model.last(model.att(x)[0]).hidden
    extractor = extract(model, ["getitem", "getattr", "getitem_1", "add", "att"])
    features = extractor(x)
    assert identical(features["att"], model.att(x))
    assert identical(features["getitem"], hidden[:, 0])
    assert identical(features["getattr"], x.mT)
    assert identical(features["getitem_1"], x.mT[0])
    assert identical(features["add"], hidden[:, 0] + x.mT[0])
    with pytest.raises(featuretap.NodeNotFoundError):
        extract(model, ["getitem_2"])(x)


class Casts(nn.Module):
    """Two dtypes that are equal, each read once and used once."""

    def __init__(self):
        super().__init__()
        self.lin = linear(1)

    def forward(self, x):
        before = x.dtype
        y = self.lin(x.to(self.lin.weight.dtype)).to(before)
        return y.mT + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_N8_each_dtype_that_is_read_is_a_node_though_they_are_equal(extract, dtype):
    model, x = Casts().eval(), drawn(2, 4).to(dtype)
    features = extract(model, ["getattr", "getattr_1", "getattr_2"])(x)
    assert features["getattr"] is torch.float32
    assert features["getattr_1"] is dtype
    assert identical(features["getattr_2"], model.lin(x.float()).to(dtype).mT)


def test_N6_what_a_module_returns_comes_after_the_last_operation_inside(extract):
    model = nn.Sequential(nn.Sequential(Casts()))
    for asked in (["0", "0.0", "0.0.add"], ["0.0.add", "0.0", "0"]):
        assert list(extract(model, asked)(X)) == ["0.0.add", "0.0", "0"]


class CalledInTraining(nn.Module):
    """A head called like what torchvision takes the second addition for."""

    def __init__(self):
        super().__init__()
        self.add_1 = linear(1)

    def forward(self, x):
        x = (x + 1) * 2 + 3
        return self.add_1(x) if self.training else x


def test_N5_the_path_of_a_module_is_no_operation_in_the_mode_that_does_not_call_it(extract):
    asked = {"train_return_nodes": ["add_1"], "eval_return_nodes": ["add_2"]}
    model = CalledInTraining()
    extractor = extract(model, **asked)
    assert identical(extractor(X)["add_1"], model.add_1((X + 1) * 2 + 3))
    assert identical(extractor.eval()(X)["add_2"], (X + 1) * 2 + 3)
    with pytest.raises(featuretap.NodeNotFoundError, match="'add_1'"):
        extract(model, ["add_1"]).eval()(X)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()


@pytest.mark.parametrize("name", ["0.layers.1", "0.layers.1.linear1", "0.layers.9"])
def test_E1_what_is_inside_of_a_leaf_module_says_so(extract, name):
    text = f"'{name}' is no node of the model: it is inside of '0', a leaf module"
    with pytest.raises(featuretap.NodeNotFoundError, match=text) as caught:
        extract(encoder(), [name])
    assert caught.value.suggestions == ("0",)
    assert "leave it out there" in str(caught.value)


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(drawn(4))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x):
        return x * self.gamma + self.shift


@pytest.mark.parametrize("known", [False, True])
def test_N7_torchvisions_name_of_a_parameter_that_is_read_is_accepted(extract, known):
    model = nn.Sequential(nn.Identity(), Scales())
    kwargs = {"example_args": (X,)} if known else {}
    features = extract(model, ["1.1_gamma", "1.mul"], **kwargs)(X)
    assert identical(features["1.1_gamma"], model[1].gamma)
    assert list(features) == ["1.1_gamma", "1.mul"]


class Biased(nn.Module):
    """Keeps in eval mode what it computes from a parameter, as LeViT and its kin do."""

    def __init__(self):
        super().__init__()
        self.lin, self.bias, self.kept = linear(1), nn.Parameter(drawn(2, 4)), {}
        self.register_buffer("index", torch.tensor([0, 1, 1, 0]), persistent=False)

    def biases(self, device):
        if self.training:
            return self.bias[self.index]
        key = str(device)
        if key not in self.kept:
            self.kept[key] = self.bias[self.index]
        return self.kept[key]

    def forward(self, x):
        y = self.lin(x) + self.biases(x.device)
        return y[:, 0] * y[:, 1]


@pytest.mark.parametrize("is_warm", [False, True])
def test_N8_a_cache_that_is_filled_already_changes_no_name(extract, names_of, is_warm):
    model, x = nn.Sequential(Biased()).eval(), drawn(4, 4)
    expected = model(x) if is_warm else Biased.forward(model[0], x)
    kept = dict(model[0].kept)
    if not is_warm:
        model[0].kept.clear()
    asked = ["0.getitem", "0.getitem_1", "0.getitem_2", ""]
    extractor = extract(model, asked, suppress_diff_warning=True)
    y = model[0].lin(x) + kept[str(x.device)]
    for _ in range(3):
        features = extractor(x)
        assert list(features) == asked
        assert identical(features["0.getitem"], kept[str(x.device)])
        assert identical(features["0.getitem_1"], y[:, 0])
        assert identical(features[""], expected)
    assert type(model[0].kept) is dict
    assert not is_warm or model[0].kept[str(x.device)] is kept[str(x.device)]
    listed = names_of(model, example_args=(x,), suppress_diff_warning=True)
    assert [name for name in listed.eval if "getitem" in name] == asked[:3]


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyBatchNorm1d(), nn.Linear(4, 2))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("nodes", [["0", "2", "1"], ["3", "1"], [""]])
def test_V1_a_lazy_module_makes_its_parameters_in_the_first_call(extract, nodes):
    model = lazy()
    extractor = extract(model, nodes)
    features = [extractor(X) for _ in range(2)]
    reference = lazy()
    reference(X)
    reference.load_state_dict(model.state_dict())
    assert all(type(module).__name__[:4] != "Lazy" for module in model)
    expected, values = X, {}
    for path, module in reference.eval().named_children():
        values[path] = values[""] = expected = module(expected)
    model.eval(), extractor.eval()
    found = extractor(X)
    assert list(features[0]) == list(found)
    assert all(identical(found[node], values[node]) for node in nodes)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_M5_an_example_is_refused_while_a_module_has_no_parameters_yet(backend):
    model = lazy()
    with pytest.raises(ValueError, match=r"'0' \(LazyLinear\) makes .* call the model once"):
        featuretap.create_feature_extractor(model, "0", example_args=(X,), backend=backend)
    assert type(model[0]) is nn.LazyLinear
