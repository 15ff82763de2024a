"""The naming rule, on its own."""

from __future__ import annotations

import operator
import re

import torch
from hypothesis import given
from hypothesis import strategies as st

from featuretap.naming import Namer, join, operation_name

PARTS = st.sampled_from(["a", "b", "a_1", "b_2", "conv", "conv_1", "0", "add", "add_1"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map(".".join)
EVENTS = st.lists(st.tuples(st.sampled_from(["module", "operation"]), PATHS, PARTS), max_size=30)


@given(st.frozensets(PATHS), EVENTS)
def test_names_are_unique_and_the_path_of_a_module_is_its_own(paths, events):
    namer = Namer(paths)
    called: set[str] = set()
    names = []
    for kind, scope, operation in events:
        if kind == "module":
            if scope not in paths:
                continue
            name = namer.module(scope)
            assert (name == scope) == (scope not in called)
            called.add(scope)
            base = scope
        else:
            name = namer.operation(scope, operation)
            assert name not in paths
            base = join(scope, operation)
        assert re.fullmatch(rf"{re.escape(base)}(_[1-9][0-9]*)?", name)
        names.append(name)
    assert len(names) == len(set(names))


@given(st.lists(PARTS, max_size=20))
def test_without_clashes_repeats_are_counted_from_one(operations):
    operations = [operation for operation in operations if not operation[-1].isdigit()]
    namer = Namer(())
    for index, operation in enumerate(operations):
        before = operations[:index].count(operation)
        expected = f"{operation}_{before}" if before else operation
        assert namer.operation("scope", operation) == f"scope.{expected}"


def test_operation_names_are_those_of_fx():
    graph = torch.fx.Graph()
    targets = [operator.add, operator.and_, operator.getitem, torch.relu, torch.nn.functional.gelu]
    targets += [torch.nn.functional.max_pool2d, torch._assert, torch.flatten, Namer]
    for target in targets:
        node = graph.call_function(target, ())
        assert re.sub(r"_\d+$", "", node.name) == operation_name(target)
    for method in ["add_", "view", "__getitem__", "toBase"]:
        assert graph.call_method(method, ()).name.rstrip("_1") == operation_name(method).rstrip(
            "_1"
        )
    assert operation_name(getattr) == "getattr"
    assert operation_name(operator.iadd) == "add"
    assert operation_name(operator.imatmul) == "matmul"


def test_C3_trap15_naming_ten_thousand_repeats_searches_nothing():
    """Each name asks for the next free counter, not for all before it."""

    class Counting(set):
        asked = 0

        def __contains__(self, item):
            Counting.asked += 1
            return super().__contains__(item)

    namer = Namer(Counting())
    for _ in range(10_000):
        namer.operation("scope", "add")
    assert Counting.asked <= 2 * 10_000
