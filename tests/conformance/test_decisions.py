"""Rule V2: what Python asks about tensors that are no inputs is answered anew in each call, or refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featuretap
from support import identical, with_forward


def model_of(function):
    model = with_forward(function, kept=torch.tensor([0.0, 1.0, 0.0, 2.0]), number=torch.tensor(3))
    model.own = Writes()
    return model


class Writes(nn.Module):
    def forward(self, made, x):
        if x.sum() > -100:  # so that it is one node of fx
            made.add_(x)
        return x


def branch(x, value):
    return x * 2 if value > 2 else x - 1


def what_an_input_was_added_to(self, x):
    made = torch.zeros(4)
    made.add_(x)
    return branch(x, made.sum())


def what_an_input_was_put_into(self, x):
    made = torch.zeros(4)
    made[0] = x[0]
    return branch(x, made.sum())


def another_name_of_it(self, x):
    made = other = torch.zeros(4)
    made += x
    return branch(x, other.sum())


def the_whole_of_a_view(self, x):
    made = torch.zeros(4)
    made[:2].add_(x[:2])
    return branch(x, made.sum())


def what_is_out(self, x):
    made = torch.zeros(4)
    torch.add(x, 1, out=made)
    return branch(x, made.sum())


def a_view_like_an_input(self, x):
    made = torch.zeros(4)
    made.view_as(x).add_(x)
    return branch(x, made.sum())


def what_a_leaf_wrote(self, x):
    made = torch.zeros(4)
    return branch(self.own(made, x), made.sum())


def drawn_in_place(self, x):
    made = torch.empty(4)
    made.uniform_(0, 1)
    return branch(x, made.sum())


def drawn_by_init(self, x):
    made = torch.empty(4)
    nn.init.uniform_(made)
    return branch(x, made.sum())


def copied_from_a_buffer(self, x):
    made = torch.zeros(4)
    made[:2].copy_(self.kept[:2])
    return branch(x, made.sum())


LOOKS = [
    what_an_input_was_added_to,
    what_an_input_was_put_into,
    another_name_of_it,
    the_whole_of_a_view,
    what_is_out,
    a_view_like_an_input,
    what_a_leaf_wrote,
    drawn_in_place,
    drawn_by_init,
    copied_from_a_buffer,
]


def number_of_nonzero(self, x):
    return x * self.kept.nonzero().shape[0]


def loop_over_nonzero(self, x):
    for _ in self.kept.nonzero():
        x = x + 1
    return x


def length_of_a_mask(self, x):
    return x * len(self.kept[self.kept > 0])


def of_what_was_written(self, x):
    made = torch.zeros(4)
    made.copy_(x)
    return x * torch.nonzero(made).size(0)


def of_what_was_drawn(self, x):
    made = torch.rand(4)
    return x * (made[made > 0.5] * 2).numel()


def of_what_was_resized(self, x):
    made = torch.zeros(2)
    made.resize_as_(x).zero_()
    return x * (made * 2).shape[0]


def number_of_unique(self, x):
    return x * self.kept.unique().shape[0]


def where_something_is(self, x):
    return x + torch.arange(torch.where(self.kept > 0)[0].shape[0]).sum()


def parts_at_places(self, x):
    places = self.kept.long()[1:2].cpu()
    return x + len(torch.tensor_split(torch.arange(4.0), places)[0])


def repeated_by_a_buffer(self, x):
    return x * torch.repeat_interleave(torch.arange(4), self.kept.long()).shape[0]


def counted(self, x):
    return x * torch.bincount(self.kept.long()).shape[0]


def classes(self, x):
    return x * F.one_hot(self.kept.long()).shape[1]


def a_range_to_a_buffer(self, x):
    return x * torch.arange(self.number).shape[0]


def a_slice_to_a_buffer(self, x):
    return x * torch.arange(4)[: self.number].shape[0]


def number_of_parts(self, x):
    return x * len(list(self.kept.nonzero().unbind()))


def parts_of_a_size(self, x):
    return x * len(torch.arange(12).split(self.number))


def as_many_parts(self, x):
    return x * len(torch.arange(12).chunk(self.number))


def padded_by_a_buffer(self, x):
    return x * F.pad(torch.zeros(3), (0, self.number)).numel()


def interpolated_to_a_buffer(self, x):
    return x * F.interpolate(torch.zeros(1, 1, 4), size=self.number).numel()


def as_many_of_the_largest(self, x):
    return x * torch.arange(6.0).topk(k=self.number - 1)[0].numel()


def number_of_entries(self, x):
    return x * self.kept.to_sparse()._nnz()


def packed_by_a_buffer(self, x):
    lengths = torch.stack([self.number, self.number - 2]).cpu()
    return x * nn.utils.rnn.pack_padded_sequence(torch.zeros(9, 2, 1), lengths).data.shape[0]


SIZES = [
    parts_of_a_size,
    as_many_parts,
    padded_by_a_buffer,
    interpolated_to_a_buffer,
    as_many_of_the_largest,
    number_of_entries,
    packed_by_a_buffer,
    number_of_nonzero,
    loop_over_nonzero,
    length_of_a_mask,
    of_what_was_written,
    of_what_was_drawn,
    of_what_was_resized,
    number_of_unique,
    where_something_is,
    parts_at_places,
    repeated_by_a_buffer,
    counted,
    classes,
    a_range_to_a_buffer,
    a_slice_to_a_buffer,
    number_of_parts,
]


def gradients(self, x):
    made = torch.zeros(4)
    made += x
    return x * (2 if made.requires_grad else 3)


FX_ONLY = pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")


@pytest.mark.parametrize("function", LOOKS, ids=lambda function: function.__name__)
@FX_ONLY
def test_V2_a_value_that_may_be_another_one_in_the_next_call_is_not_looked_at(extract, function):
    with pytest.raises(featuretap.UntraceableModelError, match="looks at the value of"):
        extract(model_of(function), "")


@pytest.mark.parametrize("function", SIZES, ids=lambda function: function.__name__)
@FX_ONLY
def test_V2_nor_is_a_size_that_follows_from_such_a_value(extract, function):
    # Where torch shows how it reads a number off a tensor, that is what is refused.
    reason = "a size that follows from the values|may have resized|looks at the value of"
    with pytest.raises(featuretap.UntraceableModelError, match=reason):
        extract(model_of(function), "")


@FX_ONLY
def test_V2_nor_are_gradients_of_what_was_written(extract):
    with pytest.raises(
        featuretap.UntraceableModelError, match=r"asks for \.requires_grad of a tensor"
    ):
        extract(model_of(gradients), "")


@pytest.mark.parametrize(
    "function", [*LOOKS, *SIZES, gradients], ids=lambda function: function.__name__
)
@pytest.mark.only("hooks", why="fx refuses these")
def test_V2_the_real_forward_answers_them_anew_in_each_call(extract, function):
    model = model_of(function)
    extractor = extract(model, "")
    for seed, x in enumerate((torch.zeros(4), torch.full((4,), 5.0), torch.zeros(4))):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert identical(extractor(x)[""], expected)
        model.kept = model.kept + 1
        model.number += 1


def equal_dtype(self, x):
    return x * (2 if self.kept.dtype == torch.float32 else 3)


def dtype_in_a_list(self, x):
    dtype = self.kept.dtype
    return x * (2 if dtype in (torch.float16, torch.bfloat16) else 3)


def dtype_in_a_list_with_none(self, x):
    dtype = self.kept.dtype
    return x * (2 if dtype in (None, torch.float32) else 3)


def dtype_beside_none_and_another(self, x):
    dtype = self.kept.dtype
    if dtype is None or dtype is torch.float16:
        x = x + 1
    return x * 2


DTYPES = [equal_dtype, dtype_in_a_list, dtype_in_a_list_with_none, dtype_beside_none_and_another]


@pytest.mark.parametrize("function", DTYPES, ids=lambda function: function.__name__)
def test_M2_a_comparison_of_the_dtype_of_a_buffer_is_answered_anew_or_refused(
    backend, extract, function
):
    model, x = model_of(function), torch.ones(4)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match=r"compares \.dtype of a tensor"):
            extract(model, "")
        return
    extractor = extract(model, "")
    for _ in range(2):
        assert identical(extractor(x)[""], model(x))
        model.half()
