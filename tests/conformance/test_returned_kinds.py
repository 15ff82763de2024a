"""Rules V2, E2: what a module or a function returns is taken for no other kind of value."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from featuretap import UntraceableModelError
from support import drawn, identical, with_forward

X = torch.ones(2, 4)


def test_V2_fields_of_named_tuples_are_not_looked_for_on_tensors(extract, names_of):
    def forward(self, x):
        found = torch.linalg.eigh(x.T @ x)
        sign, size = torch.linalg.slogdet(x.T @ x + torch.eye(4))
        _, where = F.max_pool1d(x[None], 2, return_indices=True)
        return found.eigenvectors * sign + size, found.eigenvalues, where

    model, x = with_forward(forward), drawn(5, 4)
    assert "linalg_eigh" in list(names_of(model, example_args=(x,)))
    assert identical(extract(model, "")(x)[""], model(x))


def asks_for_a_list(self, x):
    found = self.neck([x, x + 1])
    return self.layer(found[1] if isinstance(found, (list, tuple)) else found)


def asks_for_none(self, x):
    weights = self.neck(None)
    return self.layer(x) if weights is None else x * 2


def asks_for_a_size(self, x):
    return self.layer(x) if isinstance(self.neck(x.shape), tuple) else x * 2


def asks_for_a_tensor(self, x):
    found = self.neck(self.neck(self.layer(x)))
    return found * 2 if isinstance(found, torch.Tensor) else x


@pytest.mark.parametrize(
    "forward", [asks_for_a_list, asks_for_none, asks_for_a_size, asks_for_a_tensor]
)
def test_V2_what_an_identity_returns_is_of_the_kind_that_it_was_given(backend, extract, forward):
    model = with_forward(forward, layer=nn.Linear(4, 4), neck=nn.Identity())
    if backend == "fx" and forward in (asks_for_a_list, asks_for_none):
        with pytest.raises(featuretap.UntraceableModelError):
            extract(model, "")
    else:
        assert identical(extract(model, "")(X)[""], model(X))


def of_a_cell(self, x):
    found = self.cell(x)
    return found[0] if isinstance(found, tuple) else found


def of_a_loss(self, x):
    found = self.loss(x, torch.zeros(2, dtype=torch.long))
    return found.output if hasattr(found, "output") else x


def of_a_native_layer(self, x):
    found = torch.native_layer_norm(x, (4,), None, None, 1e-5)
    return found[0] if isinstance(found, tuple) else x


def of_pooling(self, x):
    found = F.max_pool1d_with_indices(x, 2)
    return found[0] if isinstance(found, tuple) else x


def of_autograd(self, x):
    weight = self.cell.weight_hh
    found = torch.autograd.grad((weight * 2).sum(), weight)
    return found[0] * x.sum() if isinstance(found, tuple) else x


def of_a_sign(self, x):
    return x * 2 if x.is_signed() is True else x


def of_a_pointer(self, x):
    pointer = x.data_ptr()
    return x * 2 if isinstance(pointer, int) else x


def of_a_power(self, x):
    share = x.dim() ** -1
    return x * 2 if isinstance(share, float) else x


def of_a_layout(self, x):
    layout = x.layout
    return x * 2 if layout is torch.strided else x


def of_a_dtype(self, x):
    kind = self.cell(x)[0].dtype
    return x * 2 if torch.float32 is kind else x


@pytest.mark.parametrize(
    "forward",
    [
        *(of_a_cell, of_a_loss, of_a_native_layer, of_pooling, of_autograd, of_a_sign),
        *(of_a_pointer, of_a_power, of_a_layout, of_a_dtype),
    ],
)
def test_V2_what_may_be_no_tensor_is_taken_for_none(backend, extract, forward):
    parts = {"cell": nn.LSTMCell(4, 4), "loss": nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3], 1.0)}
    model = with_forward(forward, **parts)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError):
            extract(model, "")
    else:
        assert identical(extract(model, "")(X)[""], model(X))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class ReturnsAPair(nn.Module):
    def forward(self, x):
        return Pair(x + 1, x + 2)


class NestsAPair(nn.Module):
    def forward(self, x):
        return Pair(x + 3, Pair(x + 4, x + 5))


class ReadsFields(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair, self.outer = ReturnsAPair(), NestsAPair()
        self.head = nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6], div_value=1)

    def forward(self, x):
        pair = self.pair(x)
        y = pair.second * 2 + pair[0]
        inner = self.outer(x).second.first - 1
        return self.head(y, torch.tensor([1, 4])).output.sum() * x.T + inner.sum()


def test_N1_N9_fields_of_a_named_tuple_that_a_leaf_returns_are_nodes(extract, names_of):
    torch.manual_seed(0)
    model, x = ReadsFields(), torch.ones(2, 4)
    leaf = {"leaf_modules": [ReturnsAPair, NestsAPair]}
    names = names_of(model, leaf, example_args=(x,))
    first = ["pair", "getattr", "mul", "getitem", "add"]
    inner = ["outer", "getattr_1", "getattr_2", "sub"]
    last = ["head", "getattr_3", "sum", "getattr_4", "mul_1", "sum_1", "add_1"]
    assert names == ["x", *first, *inner, *last]
    for example in (None, (x,)):
        for _ in range(2):
            features = extract(model, [*names, ""], None, None, leaf, example_args=example)(x)
            assert identical(features["getattr"], x + 2)
            assert identical(features["getitem"], x + 1)
            assert identical(features["getattr_2"], x + 4)
            assert identical(features["getattr_3"], model.head(features["add"], TARGETS).output)
            assert identical(features["getattr_4"], x.T)
            assert identical(features[""], model(x))


TARGETS = torch.tensor([1, 4])


@pytest.mark.sees_operations
def test_V2_a_named_tuple_that_a_leaf_returns_does_what_it_does_unwatched():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = ReturnsAPair()

        def forward(self, x):
            pair = self.pair(x)
            assert isinstance(pair, Pair)
            assert pair._fields == ("first", "second")
            pair = pair._replace(first=x * 3)
            return pair.first + pair._asdict()["second"]

    model, x = Replaces(), torch.ones(2, 4)
    extractor = featuretap.create_feature_extractor(
        model, ["add"], None, None, {"leaf_modules": [ReturnsAPair]}, backend="hooks"
    )
    for _ in range(2):
        assert identical(extractor(x)["add"], model(x))


class Found(NamedTuple):
    """Its fields are called as methods of tuples are."""

    count: torch.Tensor
    index: torch.Tensor


class Finds(nn.Module):
    def forward(self, x):
        return Found(x + 1, x - 1)


class ReadsFound(nn.Module):
    def __init__(self):
        super().__init__()
        self.found = Finds()

    def forward(self, x):
        found = self.found(x)
        return found.count * 2 + found.index


def test_V2_N9_fields_called_as_methods_of_tuples_are_fields(extract, names_of):
    model, x, leaf = ReadsFound(), torch.ones(2, 4), {"leaf_modules": [Finds]}
    names = names_of(model, leaf, example_args=(x,))
    assert names == ["x", "found", "getattr", "mul", "getattr_1", "add"]
    features = extract(model, [*names, ""], None, None, leaf)(x)
    assert identical(features["getattr_1"], x - 1)
    assert identical(features[""], model(x))


def test_V2_methods_of_tuples_find_what_they_find_unwatched(extract):
    def forward(self, x):
        shape = (x + 1).shape
        return x * shape.count(2) + shape.index(4) - shape.index(4, 1)

    model, x = with_forward(forward), torch.ones(2, 4)
    assert identical(extract(model, "")(x)[""], model(x))


class Boxes(list):
    """A list with something besides its items."""


class Twosome(tuple):
    """A tuple of the user's own."""


@pytest.mark.parametrize("kind", [Boxes, Twosome])
def test_N6_what_a_module_returned_keeps_its_class_or_is_refused(extract, backend, kind):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            found = kind([self.lin(x), x])
            vars(found)["score"] = found[0].sum()
            return found

    model, x = nn.Sequential(Returns()), drawn(2, 4)
    if backend == "fx":
        with pytest.raises(UntraceableModelError, match=f"returns a {kind.__name__}"):
            extract(model, "0")
    else:
        found = extract(model, "0")(x)["0"]
        assert type(found) is kind
        assert identical(found[0], model[0].lin(x))
        assert identical(found.score, model(x).score)
    assert identical(extract(model, "0.lin")(x)["0.lin"], model[0].lin(x))


def test_N6_several_results_of_torch_keep_their_class(extract):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(4.0))

        def forward(self, x):
            return torch.max(self.table, 0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.finds = Returns()

        def forward(self, x):
            return x + self.finds(x).values

    model = Net()
    found = extract(model, ["finds", "add"])(X)
    assert type(found["finds"]) is torch.return_types.max
    assert identical(found["finds"].values, model.finds.table[3])
    assert identical(found["add"], X + 3)


class Loose:
    """Has whatever attribute it is asked for, so it seems to have the fields of a named tuple."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        return None


@pytest.mark.only("fx", why="hooks return what the forward returned")
def test_N6_an_object_that_seems_to_have_fields_is_no_tuple(extract):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return Loose(self.lin(x))

    model = nn.Sequential(Returns())
    assert identical(extract(model, "0.lin")(X)["0.lin"], model[0].lin(X))
    with pytest.raises(UntraceableModelError, match="returns a Loose"):
        extract(model, "0")
