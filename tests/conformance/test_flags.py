"""Rule V2: ``training`` flags that a forward reads past their attribute."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from support import identical


def reads_its_dict(self, x):
    return self.lin(x * 2 if self.__dict__["training"] else x)


def reads_a_dict(self, x):
    return self.lin(x * 2 if vars(self.lin)["training"] else x)


def reads_of_a_copy(self, x):
    return self.lin(x * 2 if copy.copy(self.lin).training else x)


def reads_itself(self, x):
    return self.lin(x * 2 if self.training else x)


class OwnProperty(nn.Linear):
    @property
    def training(self):
        return self.__dict__.get("mode", True)

    @training.setter
    def training(self, mode):
        self.__dict__["mode"] = mode


class OwnAttribute(nn.Linear):
    training = False


FLAGS = [
    *itertools.product(
        [reads_its_dict, reads_of_a_copy, reads_itself], [nn.Linear, OwnProperty, OwnAttribute]
    ),
    *((reads_a_dict, layer) for layer in (nn.Linear, OwnAttribute)),
]


@pytest.mark.parametrize("first", ["train", "eval"])
@pytest.mark.parametrize(("function", "layer"), FLAGS)
def test_V2_a_flag_that_is_read_past_its_attribute_decides_in_each_mode(
    extract, function, layer, first
):
    model = type("Reads", (nn.Module,), {"forward": function})()
    model.lin = layer(4, 4)
    model.train(first == "train")
    extractor, x = extract(model, "", suppress_diff_warning=True), torch.ones(2, 4)
    for mode in (True, False, True):
        assert identical(extractor.train(mode)(x)[""], model.train(mode)(x))
