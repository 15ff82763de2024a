"""Rule V2: what Python asks about tensors, and every call answers alike, is answered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import has_torch_function_unary

import featuretap
from support import identical, with_forward


def constants(self, x):
    made = torch.zeros(4)
    made[:2] = 1
    made[3].fill_(2)
    number = int(made.sum()) + made.nonzero().shape[0] + len(made[made > 0])
    return x * number + made


def known_sizes(self, x):
    view = self.kept[: int(torch.tensor(3))]
    hot = F.one_hot(self.kept.long(), 5)
    twice = self.kept.repeat_interleave(2)
    chosen = self.kept[torch.tensor([1, 2])]
    found = self.kept.nonzero().sum()
    moved = torch.arange(4) + self.number
    filled = torch.arange(4).masked_fill(self.kept > 0, self.number)
    sizes = len(view) + hot.shape[1] + twice.numel() + chosen.size(0) + found.dim()
    return x * (sizes + moved.numel() + len(filled)) + found + moved + filled


def dtype_by_default(self, x, dtype=None):
    if dtype is None:
        dtype = self.kept.dtype
    if self.kept.dtype is not None:
        x = x * 2
    return x.to(dtype)


def in_its_dtype(x, dtype=None):
    if dtype is None:
        dtype = x.dtype
    return (x.double() * 2).to(dtype)


def dtype_of_a_value_by_default(self, x):
    y = x * 3
    return in_its_dtype(y) + in_its_dtype(y, torch.float64)


@pytest.mark.parametrize(
    "function",
    [constants, known_sizes, dtype_by_default, dtype_of_a_value_by_default],
    ids=lambda f: f.__name__,
)
def test_V2_what_no_call_changes_may_be_looked_at(extract, function):
    model = with_forward(function, kept=torch.tensor([0.0, 1.0, 0.0, 2.0]), number=torch.tensor(3))
    extractor = extract(model, "")
    for x in (torch.zeros(4), torch.ones(4)):
        assert identical(extractor(x)[""], model(x))


is_watched = has_torch_function_unary


def asks_whether_somebody_watches(self, x):
    y = x.exp()
    return y.sin() if torch.overrides.has_torch_function((y,)) else y.cos()


def asks_by_an_imported_name(self, x):
    y = x.exp()
    return y.sin() if has_torch_function_unary(y) else y.cos()


def asks_by_a_name_of_its_own(self, x):
    y = x.exp()
    return y.sin() if is_watched(y) else y.cos()


def asks_for_an_attribute_of_stand_ins(self, x):
    y = x.exp()
    return y.sin() if hasattr(y, "node") else y.cos()


def asks_for_a_stand_in(self, x):
    y = x.exp()
    return y.sin() if isinstance(y, (torch.fx.Proxy, int)) else y.cos()


@pytest.mark.parametrize(
    "forward",
    [
        asks_whether_somebody_watches,
        asks_by_an_imported_name,
        asks_by_a_name_of_its_own,
        asks_for_an_attribute_of_stand_ins,
        asks_for_a_stand_in,
    ],
)
def test_V2_a_forward_that_asks_whether_it_is_watched_is_answered_as_if_not_or_refused(
    extract, backend, forward
):
    model, x = with_forward(forward), torch.ones(2, 4)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="tells a stand-in of torch.fx"):
            extract(model, ["exp", ""])
        inside = nn.Sequential(model, nn.Tanh())
        assert identical(extract(inside, "1")(x)["1"], model(x).tanh())
        return
    for names in (["exp", ""], ["cos"]):
        extractor = extract(model, names)
        for _ in range(3):
            assert identical(extractor(x)[names[-1]], x.exp().cos())
