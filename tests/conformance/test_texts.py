"""Rule V2: a text that is made of a value is for people, or it is refused by fx."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

import featuretap
from support import copied, identical, with_forward

LOG = logging.getLogger(__name__)
FACTORS = {"2": 2.0, "torch.float32": 3.0, "3": 5.0}


def looks_up_a_size(self, x):
    return x * FACTORS.get(f"{x.shape[0]}", 1.0)


def looks_up_a_dtype(self, x):
    return x * FACTORS.get(str(x.dtype), 1.0)


def compares_what_was_formatted(self, x):
    text = "{} and more".format(x.dtype)  # noqa: UP032
    return x * (2 if text.startswith("torch.float32") else 3)


def formats_by_percent(self, x):
    text = "%s" % x.dtype  # noqa: UP031
    return x * FACTORS.get(text, 1.0)


def writes_by_a_text(self, x):
    y = x * 1
    y.mul_(FACTORS.get(repr(x.dtype), 4))
    return y


def formats_a_buffer(self, x):
    return x * FACTORS.get(f"{self.number}", 1.0)


def measures_a_buffer(self, x):
    return x * len(repr(self.number))


USED = [
    looks_up_a_size,
    looks_up_a_dtype,
    compares_what_was_formatted,
    formats_by_percent,
    writes_by_a_text,
    formats_a_buffer,
    measures_a_buffer,
]


def model_of(function):
    return with_forward(function, number=torch.tensor(3))


@pytest.mark.parametrize("function", USED, ids=lambda function: function.__name__)
def test_V2_a_text_that_the_forward_uses_is_made_anew_or_refused(backend, extract, function):
    model = model_of(function)
    if backend == "fx":
        with pytest.raises(featuretap.UntraceableModelError, match="makes a text of a value"):
            extract(model, "")
        return
    extractor = extract(model, "")
    for x in (torch.ones(2, 4), torch.ones(3, 4).double()):
        assert identical(extractor(x)[""], model(x))
        model.number += 10


def talks(self, x):
    if self.number.dtype is None:
        raise ValueError(f"no {x.shape} for {self.number}")
    print(x.shape, f"{x.shape[0]} and {self.number}", self.number)
    print("%s of " % x.dtype + "{}".format(x), self.number)  # noqa: UP031, UP032
    LOG.warning("a %s of %s", x.dtype, self.number)
    warnings.warn(f"{x.shape}", stacklevel=1)
    torch._assert(x.shape[-1] == 4, f"4 of {x.shape[-1]}, not {self.number}")
    return x * 2


def fills_a_cache(self, x):
    key = str(x.dtype)
    if key not in self.cache:
        self.cache[key] = self.number.detach() * 2
    return x * self.cache[key]


def finds_no_cache(self, x):
    key = str(x.dtype)
    return x * (2 if key in self.cache else 3)


def test_V2_a_text_that_is_the_key_of_a_cache_is_not_refused(extract):
    model, x = model_of(fills_a_cache), torch.ones(2, 4)
    model.cache = {}
    assert identical(extract(model, "mul")(x)["mul"], copied(model)(x))


@pytest.mark.only("fx", why="hooks record nothing, and refuse nothing")
def test_V2_a_text_that_is_only_looked_for_is_refused(extract):
    model = model_of(finds_no_cache)
    model.cache = {}
    with pytest.raises(featuretap.UntraceableModelError, match="makes a text of a value"):
        extract(model, "mul")


@pytest.mark.filterwarnings("ignore:torch.Size|Proxy:UserWarning")
def test_V2_what_is_told_to_people_is_not_refused(extract, capsys):
    model, x = model_of(talks), torch.ones(2, 4)
    extractor = extract(model, "mul")
    assert identical(extractor(x)["mul"], model(x))
    assert "torch.Size([2, 4])" in capsys.readouterr().out
