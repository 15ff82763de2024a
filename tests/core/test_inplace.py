"""What operations write and share, checked against what they do to real storage."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from featuretap.facts import _FRESH_FUNCTIONS
from featuretap.inplace import (
    _FRESH_MODULES,
    StorageClasses,
    effect_of,
    leaves_trace,
)

X = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)


def storages(value):
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()}
    if isinstance(value, (tuple, list)):
        return set().union(*map(storages, value))
    return set()


def node_of(op, target, *args, **kwargs):
    graph = fx.Graph()
    return graph.create_node(op, target, (graph.placeholder("x"), *args), kwargs)


def effect(op, target, *args, module=None, **kwargs):
    return effect_of(node_of(op, target, *args, **kwargs), module)


def lasts(op, target, *args, module=None, training=False):
    return leaves_trace(node_of(op, target, *args), module, lambda _: training)


METHODS = [
    ("view", (16,)), ("reshape", (2, 8)), ("transpose", (2, 3)), ("permute", (0, 1, 3, 2)),
    ("flatten", (1,)), ("squeeze", ()), ("unsqueeze", (0,)), ("expand", (1, 1, 4, 4)),
    ("contiguous", ()), ("to", (torch.float32,)), ("float", ()), ("detach", ()), ("chunk", (2, 2)),
    ("split", (2, 2)), ("unbind", (2,)), ("narrow", (2, 0, 2)), ("select", (2, 0)),
    ("type_as", (X,)), ("expand_as", (X,)), ("view_as", (X,)), ("clone", ()), ("add", (1,)),
    ("mul", (2,)), ("relu", ()), ("sum", ()), ("mean", ()), ("softmax", (-1,)), ("matmul", (X,)),
    ("exp", ()), ("abs", ()), ("size", ()), ("dim", ()), ("unfold", (2, 2, 1)), ("diagonal", ()),
    ("swapaxes", (2, 3)), ("movedim", (2, 3)), ("t", ()), ("masked_fill", (X > 0, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args"), METHODS, ids=[name for name, _ in METHODS])
def test_a_method_shares_whenever_its_result_does(name, args):
    x = X[0, 0] if name == "t" else X.clone()
    shares = bool(storages(getattr(x, name)(*args)) & storages(x))
    assert bool(effect("call_method", name, *args).shares) >= shares


FUNCTIONS = [
    (F.dropout, (0.5, False)), (torch.einsum, ()), (F.pad, ((0, 0),)), (torch.flatten, ()),
    (torch.atleast_2d, ()), (torch.broadcast_tensors, ()), (torch.meshgrid, ()), (F.relu, ()),
    (F.interpolate, (None, 1.0)), (F.max_pool2d, (1,)), (F.avg_pool2d, (1,)), (torch.real, ()),
    (F.adaptive_avg_pool2d, (4,)), (F.layer_norm, ((4,),)), (F.softmax, (-1,)), (torch.cat, ()),
    (F.normalize, ()), (torch.pixel_shuffle, (1,)), (operator.getitem, (0,)), (F.gelu, ()),
    (F.silu, ()), (F.hardtanh, ()), (F.leaky_relu, ()), (torch.sigmoid, ()), (operator.add, (1,)),
    (operator.neg, ()), (operator.mul, (2,)), (torch.clone, ()), (F.unfold, (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args"), FUNCTIONS, ids=[f.__name__ for f, _ in FUNCTIONS])
def test_a_function_shares_whenever_its_result_does(function, args):
    x = X.clone()
    if function is torch.einsum:
        result, said = torch.einsum("abcd->abdc", x), effect("call_function", function)
    elif function is torch.meshgrid:
        x = x.flatten()
        result, said = torch.meshgrid(x, indexing="ij"), effect("call_function", function)
    elif function is torch.cat:
        result, said = torch.cat([x]), effect("call_function", function)
    else:
        result, said = function(x, *args), effect("call_function", function, *args)
    assert bool(said.shares) >= bool(storages(result) & storages(x))


@pytest.mark.parametrize("name", sorted(_FRESH_FUNCTIONS))
def test_a_function_called_fresh_exists_and_is_written_in_python(name):
    assert callable(getattr(F, name))


ARGUMENTS = {
    "Bilinear": (2, 2, 3), "Embedding": (4, 4), "EmbeddingBag": (4, 4), "GroupNorm": (1, 1),
    "LSTM": (4, 4), "LayerNorm": (4,), "Linear": (4, 4), "LocalResponseNorm": (2,),
    "LogSoftmax": (-1,), "Softmax": (-1,), "Softmin": (-1,),
    "MultiheadAttention": (4, 2), "Threshold": (0.1, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", _FRESH_MODULES, ids=lambda kind: kind.__name__)
def test_a_module_called_fresh_shares_nothing_with_its_input(kind):
    """The input is one that a lazy implementation could return as it is."""
    made = {
        "_ConvNd": lambda: nn.Conv2d(1, 1, 1),
        "_NormBase": lambda: nn.BatchNorm2d(1),
        "_MaxPoolNd": lambda: nn.MaxPool2d(1),
        "_AvgPoolNd": lambda: nn.AvgPool2d(1),
        "_AdaptiveAvgPoolNd": lambda: nn.AdaptiveAvgPool2d(4),
        "_AdaptiveMaxPoolNd": lambda: nn.AdaptiveMaxPool2d(4),
        "RNNBase": lambda: nn.LSTM(4, 4),
        "Upsample": lambda: nn.Upsample(scale_factor=1),
    }
    module = made.get(kind.__name__, lambda: kind(*ARGUMENTS.get(kind.__name__, ())))().eval()
    if kind in (nn.Embedding, nn.EmbeddingBag):
        args = (torch.zeros(1, 2, dtype=torch.long),)
    elif kind is nn.Bilinear:
        args = (torch.ones(1, 2), torch.ones(1, 2))
    elif kind is nn.MultiheadAttention:
        args = (X[0],) * 3
    elif kind is nn.RNNBase:
        args = (X[0],)
    else:
        args = (X.clone(),)
    assert isinstance(module, kind)
    assert not storages(module(*args)) & storages(args)


def test_what_is_written():
    assert effect("call_method", "add_", 1).writes
    assert effect("call_method", "__setitem__", 0, 1).writes
    assert effect("call_function", operator.iadd, 1).writes
    assert effect("call_function", operator.setitem, 0, 1).writes
    assert effect("call_function", F.relu, inplace=True).writes
    assert effect("call_function", F.relu, True).writes
    assert effect("call_function", F.dropout, 0.5, True, True).writes
    assert effect("call_module", "m", module=nn.ReLU(inplace=True)).writes
    assert not effect("call_function", F.relu, inplace=False).writes
    assert not effect("call_function", operator.add, 1).writes
    assert not effect("call_method", "__invert__").writes
    assert not effect("call_module", "m", module=nn.ReLU()).writes


def test_unknown_code_may_write_and_share_everything():
    def mystery(x):
        return x

    said = effect("call_function", mystery)
    assert said.writes == said.shares != ()

    class Mystery(nn.Module):
        pass

    said = effect("call_module", "m", module=Mystery())
    assert said.writes == said.shares != ()


def test_what_leaves_a_trace_behind():
    assert lasts("call_function", torch.bernoulli)
    assert lasts("call_function", torch.rand_like)
    assert lasts("call_function", F.dropout, 0.5, True)
    assert not lasts("call_function", F.dropout, 0.5, False)
    assert lasts("call_module", "m", module=nn.Dropout(), training=True)
    assert not lasts("call_module", "m", module=nn.Dropout(), training=False)
    assert lasts("call_module", "m", module=nn.BatchNorm1d(1), training=True)
    assert lasts("call_module", "m", module=nn.LSTM(1, 1, 2, dropout=0.5), training=True)
    assert not lasts("call_module", "m", module=nn.Linear(1, 1), training=True)


def test_storage_classes_are_disjoint_sets():
    classes = StorageClasses()
    classes.join("a", "b")
    classes.join("b", "c")
    assert classes.of("a") == classes.of("c") != classes.of("d")
