"""Rules V2 and N1: code that a forward comes to through a Python module, an object or a table."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import typed
from support import identical

TABLE = {"double": typed.double}


def of_a_python_module(self, x):
    return typed.double(self.lin(x))


def of_a_class_of_it(self, x):
    return typed.Doubles.statically(self.lin(x))


def imported_inside(self, x):
    from typed import double

    return double(self.lin(x))


def module_imported_inside(self, x):
    import typed as helpers

    return helpers.double(self.lin(x))


def method_of_an_object(self, x):
    return self.doubles.double(self.lin(x))


def object_that_is_called(self, x):
    return self.doubles(self.lin(x))


def function_in_an_attribute(self, x):
    return self.function(self.lin(x))


def partial_in_an_attribute(self, x):
    return self.partial(self.lin(x))


def function_in_a_list(self, x):
    for function in self.functions:
        x = function(self.lin(x))
    return x


def function_in_a_table(self, x):
    return TABLE["double"](self.lin(x))


FORWARDS = [
    *(of_a_python_module, of_a_class_of_it, imported_inside, module_imported_inside),
    *(method_of_an_object, object_that_is_called, function_in_an_attribute),
    *(partial_in_an_attribute, function_in_a_list, function_in_a_table),
]


@pytest.mark.parametrize("function", FORWARDS, ids=lambda function: function.__name__)
def test_V2_N1_type_is_answered_wherever_a_helper_is_found(extract, names_of, function):
    class Net(nn.Module):
        forward = function

        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.doubles, self.function = typed.Doubles(), typed.double
            self.partial, self.functions = functools.partial(typed.double), [typed.double]

    model, x = Net(), torch.randn(2, 4)
    assert list(names_of(model, example_args=(x,))) == ["x", "lin", "mul"]
    assert identical(extract(model, "mul")(x)["mul"], model.lin(x) * 2)
    assert typed.double(3) == 3
    assert "type" not in vars(typed)


def calls_the_table(value):
    return TABLE_OF_ITSELF["other"](value) if type(value) is torch.Tensor else value


def adds_one(value):
    return value + 1 if type(value) is torch.Tensor else value


TABLE_OF_ITSELF = {"itself": calls_the_table, "other": adds_one}


def test_V2_N1_a_table_of_functions_that_look_into_it_is_read_once(extract):
    class Net(nn.Module):
        def forward(self, x):
            return TABLE_OF_ITSELF["itself"](x) * 2

    x = torch.randn(2, 4)
    assert identical(extract(Net(), ["add", "mul"])(x)["mul"], (x + 1) * 2)
