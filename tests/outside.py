"""Forwards that keep something outside of the model, and how all of it starts again."""

from __future__ import annotations

import functools
import itertools
import os
import types
from array import array
from collections import ChainMap, UserDict
from contextvars import ContextVar
from typing import ClassVar

import torch
from torch import nn

from support import here

COUNT = 0
LAST = None
LOG: list = []
SEEN: dict = {}
TABLES: dict = {}
NUMBERS = itertools.count(1)
DICE = torch.Generator(here())
STATE = types.SimpleNamespace(count=0, log=[])


class Net(nn.Module):
    """Each test gives it another forward."""

    calls = 0
    box: ClassVar = []
    factor = 2

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)


def counts_in_a_global(self, x):
    global COUNT
    COUNT += 1
    return self.lin(x) * COUNT


def keeps_the_last_in_a_global(self, x):
    global LAST
    y = self.lin(x)
    before, LAST = LAST, y
    return y * 1 if before is None else y + before


def fills_a_global_list(self, x):
    LOG.append(1)
    return self.lin(x) * len(LOG)


def counts_in_a_global_dict(self, x):
    SEEN["n"] = SEEN.get("n", 0) + 1
    return self.lin(x) * SEEN["n"]


def counts_iterations_of_a_global(self, x):
    return self.lin(x) * next(NUMBERS)


def draws_from_a_global_generator(self, x):
    return self.lin(x) * torch.rand(4, generator=DICE)


def counts_in_a_global_object(self, x):
    STATE.count += 1
    return self.lin(x) * STATE.count


def fills_a_list_of_a_global_object(self, x):
    STATE.log.append(1)
    return self.lin(x) * len(STATE.log)


def counts(x, seen=[]):  # noqa: B006
    seen.append(1)
    return x * len(seen)


class Meter:
    """A helper of which there is one, in a global."""

    calls = 0

    def __init__(self):
        self.count = 0

    def step(self):
        """Count."""
        self.count += 1
        return self.count


METER = Meter()


def counts_in_a_method_of_a_global_object(self, x):
    return self.lin(x) * METER.step()


def counts_in_another_class(self, x):
    Meter.calls += 1
    return self.lin(x) * Meter.calls


def counts_in_a_default(self, x):
    return counts(self.lin(x))


def counts_in_its_class(self, x):
    Net.calls += 1
    return self.lin(x) * self.calls


def counts_in_a_list_of_its_class(self, x):
    self.box.append(1)
    return self.lin(x) * len(self.box)


def helps(x):
    helps.calls = getattr(helps, "calls", 0) + 1
    return x * helps.calls


def counts_in_a_function(self, x):
    return helps(self.lin(x))


def also_counts():
    global COUNT
    COUNT += 1
    return COUNT


def counts_in_a_helper(self, x):
    return self.lin(x) * also_counts()


def _in_closures():
    count, box = 0, []

    def counts_around_it(self, x):
        nonlocal count
        count += 1
        return self.lin(x) * count

    def fills_a_list_around_it(self, x):
        box.append(1)
        return self.lin(x) * len(box)

    return counts_around_it, fills_a_list_around_it


COUNTS_AROUND_IT, FILLS_AROUND_IT = _in_closures()


class Box:
    """What is set is not what the code names."""

    _value = 0

    @property
    def value(self):
        return self._value

    @value.setter
    def value(self, value):
        self._value = value


NESTED, PAIR, CHAIN, OWN = {"a": [{"n": 0}]}, ({"n": 0},), ChainMap({"n": 0}), UserDict(n=0)


class Callable:
    """A function that keeps something."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * self.calls


BOX, DATA, ARRAY, CALLABLE = Box(), bytearray(1), array("l", [0]), Callable()
CONTEXT = ContextVar("CONTEXT", default=0)
TENSORS = [torch.zeros(4, device=here())]


def counts_in_a_dict_in_a_list_in_a_dict(self, x):
    NESTED["a"][0]["n"] += 1
    return self.lin(x) * NESTED["a"][0]["n"]


def counts_in_a_dict_in_a_tuple(self, x):
    PAIR[0]["n"] += 1
    return self.lin(x) * PAIR[0]["n"]


def counts_in_a_chain_of_dicts(self, x):
    CHAIN["n"] += 1
    return self.lin(x) * CHAIN["n"]


def counts_in_a_dict_of_its_own_class(self, x):
    OWN["n"] += 1
    return self.lin(x) * OWN["n"]


def counts_in_a_property(self, x):
    BOX.value += 1
    return self.lin(x) * BOX.value


def counts_in_a_tensor_of_a_list(self, x):
    TENSORS[0].add_(1)
    return self.lin(x) * TENSORS[0]


def counts_in_bytes(self, x):
    DATA[0] += 1
    return self.lin(x) * DATA[0]


def counts_in_an_array(self, x):
    ARRAY[0] += 1
    return self.lin(x) * ARRAY[0]


def counts_in_the_environment(self, x):
    os.environ["OF_A_TEST"] = str(int(os.environ.get("OF_A_TEST", "0")) + 1)
    return self.lin(x) * int(os.environ["OF_A_TEST"])


def counts_in_a_context(self, x):
    CONTEXT.set(CONTEXT.get() + 1)
    return self.lin(x) * CONTEXT.get()


def counts_in_what_is_called(self, x):
    return CALLABLE(self.lin(x))


PARTIAL = functools.partial(counts, seen=[])


def counts_in_an_argument_that_is_given_before(self, x):
    return PARTIAL(self.lin(x))


@functools.lru_cache(None)
def drawn_once(count):
    return torch.rand(count, generator=DICE, device=here())


def keeps_what_it_draws_first(self, x):
    return self.lin(x) * drawn_once(4)


STATEFUL = [
    (counts_in_a_global, "the global COUNT"),
    (keeps_the_last_in_a_global, "the global LAST"),
    (fills_a_global_list, "the global LOG"),
    (counts_in_a_global_dict, "the global SEEN"),
    (counts_iterations_of_a_global, "the global NUMBERS"),
    (draws_from_a_global_generator, "torch.Generator"),
    (counts_in_a_global_object, r"the global STATE\.count"),
    (fills_a_list_of_a_global_object, r"the global STATE\.log"),
    (counts_in_a_method_of_a_global_object, r"the global METER\.count"),
    (counts_in_another_class, r"\.calls of Meter"),
    (counts_in_its_class, r"\.calls of its class"),
    (counts_in_a_list_of_its_class, r"\.box of its class"),
    (counts_in_a_function, r"helps\.calls"),
    (counts_in_a_helper, "the global COUNT"),
    (COUNTS_AROUND_IT, "the variable count around it"),
    (FILLS_AROUND_IT, "the variable box around it"),
    (counts_in_a_default, "the default of its argument seen"),
    (counts_in_a_dict_in_a_list_in_a_dict, "the global NESTED"),
    (counts_in_a_dict_in_a_tuple, "the global PAIR"),
    (counts_in_a_chain_of_dicts, r"the global CHAIN\.maps"),
    (counts_in_a_dict_of_its_own_class, r"the global OWN\.data"),
    (counts_in_a_property, r"the global BOX\._value"),
    (counts_in_bytes, "the global DATA"),
    (counts_in_an_array, "the global ARRAY"),
    (counts_in_the_environment, "the environment of the process"),
    (counts_in_a_context, "the global CONTEXT"),
    (counts_in_what_is_called, r"the global CALLABLE\.calls"),
    (counts_in_an_argument_that_is_given_before, "the global PARTIAL"),
    (keeps_what_it_draws_first, "torch.Generator"),
]
FUNCTIONS = [function for function, _ in STATEFUL]


def net(function):
    torch.manual_seed(0)
    return type("Stateful", (Net,), {"forward": function})()


def start_again():
    """Let everything outside be as if nothing had run."""
    global COUNT, LAST, NUMBERS
    COUNT, LAST, NUMBERS, Net.calls, STATE.count = 0, None, itertools.count(1), 0, 0
    METER.count = Meter.calls = BOX._value = DATA[0] = ARRAY[0] = CALLABLE.calls = 0
    CONTEXT.set(0)
    os.environ.pop("OF_A_TEST", None)
    PARTIAL.keywords["seen"].clear()
    NESTED["a"][0]["n"] = PAIR[0]["n"] = CHAIN["n"] = OWN["n"] = 0
    TENSORS[0].zero_()
    drawn_once.cache_clear()
    vars(helps).clear()
    DICE.manual_seed(0)
    around = [cell.cell_contents for f in FUNCTIONS for cell in f.__closure__ or ()]
    for container in (LOG, SEEN, TABLES, Net.box, STATE.log, *counts.__defaults__, *around):
        if not isinstance(container, int):
            container.clear()
    COUNTS_AROUND_IT.__closure__[0].cell_contents = 0
