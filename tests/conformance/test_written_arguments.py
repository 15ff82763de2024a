"""Rules V2, N1, N9: what an operator writes besides its first argument and ``out``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support import identical

X = torch.tensor([[3.0, 1.0, 2.0], [5.0, 7.0, 6.0]])
NAMESPACE = "featuretap_written_arguments"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def _define(name, arguments, function):
    LIBRARY.define(f"{name}({arguments}) -> ()")
    LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _write(x, target):
    target.copy_(x)


put = _define("put", "Tensor x, Tensor(a!) target", _write)
put_by_name = _define(
    "put_by_name", "Tensor x, *, Tensor(a!) cache", lambda x, cache: _write(x, cache)
)


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("table", torch.zeros(2, 3))


class PutsIntoAConstant(Holds):
    names = ("x", "put", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        kept = torch.zeros(2, 3)
        put(x, kept)
        return kept * 2 + x.sum() * 3


class PutsIntoABuffer(Holds):
    names = ("x", "put", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        put(x, target=self.table)
        return self.table * 2 + x.sum() * 3


class PutsByName(Holds):
    names = ("x", "mul", "mul_1", "put_by_name", "add")

    def forward(self, x):
        kept = x * 1
        put_by_name(x * 3, cache=kept)
        return kept + 0


class PutsByNameIntoAConstant(Holds):
    names = ("x", "put_by_name", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        kept = torch.zeros(2, 3)
        put_by_name(x, cache=kept)
        return kept * 2 + x.sum() * 3


class SortsIntoConstants(Holds):
    names = ("x", "sort_values", "mul", "add", "sub")

    def forward(self, x):
        values, indices = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)
        torch.ops.aten.sort.values(x, values=values, indices=indices)
        return values * 2 + x - indices


class MovesStatistics(Holds):
    names = ("x", "batch_norm", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        F.batch_norm(x, self.mean, self.var, training=True)
        return self.mean * 2 + x.sum() * 3


class MovesStatisticsOfInstances(Holds):
    names = ("x", "t", "getitem", "instance_norm", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        F.instance_norm(x.t()[None], self.mean, self.var)
        return self.mean * 2 + x.sum() * 3


class MovesStatisticsByTheOperator(Holds):
    names = ("x", "batch_norm", "mul", "sum", "mul_1", "add")

    def forward(self, x):
        torch.ops.aten.batch_norm(x, None, None, self.mean, self.var, True, 0.5, 1e-5, False)
        return self.mean * 2 + x.sum() * 3


class GetsItsBufferBack(Holds):
    """Among others, and then writes it."""

    names = ("x", "broadcast_tensors", "getitem", "getitem_1", "mul", "add_", "add")

    def forward(self, x):
        same, other = torch.broadcast_tensors(self.table, x)
        self.table.add_(1)
        y = other * 2
        y.add_(5)
        return y + same


KINDS = [
    MovesStatisticsByTheOperator,
    GetsItsBufferBack,
    PutsIntoAConstant,
    PutsIntoABuffer,
    PutsByName,
    PutsByNameIntoAConstant,
    SortsIntoConstants,
    MovesStatistics,
    MovesStatisticsOfInstances,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("example", [(), (X,)])
def test_V2_N1_what_an_operator_writes_is_read_after_it(extract, names_of, kind, example):
    names = list(names_of(kind(), example_args=(X,)))
    assert names == list(kind.names)
    model = kind()
    expected = model(X)
    wanted = [name for name in names if name not in ("x", "put", "put_by_name", "sort_values")]
    extractor = extract(kind(), [*wanted, ""], example_args=example or None)
    features = extractor(X)
    assert identical(features[""], expected)
    for name in wanted:
        assert identical(
            extract(kind(), [name], example_args=example or None)(X)[name], features[name]
        )
