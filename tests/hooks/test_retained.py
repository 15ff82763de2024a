"""Features that are in memory which the model keeps, or writes in ways that nobody sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featuretap_hooks
from support import identical

create = featuretap_hooks.create_feature_extractor
X = torch.ones(2, 4, device="cpu")

# NumPy, ``map_()`` and ``apply_()`` are for nothing else.
pytestmark = pytest.mark.usefixtures("on_the_cpu")


class Cache(nn.Module):
    """Returns its own buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("k", torch.zeros(2, 4))

    def forward(self, x):
        self.k.copy_(x)
        return self.k


class InList(nn.Module):
    """Returns a view of a tensor that a plain attribute holds."""

    def __init__(self):
        super().__init__()
        self.states = {"a": [torch.zeros(2, 4)]}

    def forward(self, x):
        self.states["a"][0].copy_(x)
        return self.states["a"][0].view(8)


class Keeps(nn.Module):
    """Writes what its last forward returned."""

    def __init__(self):
        super().__init__()
        self.prev = None

    def forward(self, x):
        if self.prev is not None:
            self.prev.zero_()
        y = x * 2
        self.prev = y
        return y + 0 if x.sum() < 0 else y


class Holder:
    state = None


class InObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.holder = Holder()

    def forward(self, x):
        if self.holder.state is None:
            self.holder.state = torch.zeros(2, 4)
        self.holder.state.add_(x)
        return (self.holder.state, x)


class Wraps(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        y = self.m(x)
        return y[0] + 1 if isinstance(y, tuple) else y + 1


@pytest.mark.parametrize("kind", [Cache, InList, Keeps, InObject])
@pytest.mark.parametrize("nodes", [["m"], ["m", "add"], ["m", ""]])
def test_V1_a_feature_in_memory_that_the_model_keeps_is_not_changed_by_the_next_call(kind, nodes):
    model, reference = Wraps(kind()), kind()
    extractor = create(model, nodes)
    features, expected = [], []
    for factor in (1, 2, 3, 4):
        features.append(extractor(X * factor)["m"])
        now = reference(X * factor)
        expected.append(tuple(map(torch.clone, now)) if isinstance(now, tuple) else now.clone())
    assert identical(features, expected)


def test_V1_a_buffer_is_copied_also_on_a_branch_that_no_forward_took_before():
    class Sometimes(Cache):
        def forward(self, x):
            return super().forward(x) if x.sum() > 10 else x * 1

    extractor = create(Wraps(Sometimes()), ["m"])
    extractor(X)
    first, second = extractor(X * 2)["m"], extractor(X * 3)["m"]
    assert identical([first, second], [X * 2, X * 3])


def test_V1_a_buffer_that_was_exchanged_is_known():
    class Sometimes(Cache):
        def forward(self, x):
            return super().forward(x) if x.sum() > 10 else x * 1

    model = Wraps(Sometimes())
    extractor = create(model, ["m"])
    extractor(X)
    model.double()
    first, second = extractor(X * 2)["m"], extractor(X * 3)["m"]
    assert identical([first, second], [X.double() * 2, X.double() * 3])


def test_M1_a_parameter_that_is_a_feature_is_the_models_own():
    model = nn.Linear(4, 4)
    assert create(model, "weight")(X)["weight"] is model.weight


def test_V3_a_value_that_the_model_keeps_has_its_gradient():
    class Puts(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            self.last = self.lin(x)
            return self.last

    extractor = create(Puts(), [""])
    for _ in range(2):
        assert extractor(X)[""].requires_grad


WRITES = {
    "data": "h.data.clamp_(max=1)",
    "numpy": "h.numpy().fill(7)",
    "dlpack": "torch.from_dlpack(h).zero_()",
    "storage": "h.untyped_storage().fill_(0)",
    "apply": "h.apply_(lambda value: value + 1)",
    "map": "h.map_(h, lambda a, b: a + b)",
}


class Branches(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.one, self.write = nn.Identity(), write

    def forward(self, x):
        h = self.one(x * 2)
        if x.sum() > 10:
            self.write(h)
        return h + 1


def writes_itself(line):
    """A model of a class whose own code has ``line``."""
    namespace = {"Branches": Branches, "torch": torch}
    code = (
        "class Own(Branches):\n    def forward(self, x):\n        h = self.one(x * 2)\n"
        f"        if x.sum() > 10:\n            {line}\n        return h + 1\n"
    )
    exec(code, namespace)
    return namespace["Own"](None)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("nodes", [["one", ""], ["one", "mul", "add"]])
@torch.no_grad()
def test_V1_a_later_forward_that_writes_without_a_version_does_not_change_a_feature(name, nodes):
    extractor = create(writes_itself(WRITES[name]), nodes)
    extractor(X)
    features = extractor(X * 3)
    assert identical(features["one"], X * 6)
    assert identical(features.get("mul", X * 6), X * 6)


@pytest.mark.parametrize("name", WRITES)
@torch.no_grad()
def test_V1_where_operations_are_recorded_such_a_write_is_seen_as_it_comes(name):
    # The code that writes is none of the model's classes.
    extractor = create(Branches(eval(f"lambda h: {WRITES[name]}")), ["one", "mul", "add"])
    extractor(X)
    assert identical(extractor(X * 3)["mul"], X * 6)


def test_V3_what_is_copied_because_of_such_a_write_keeps_its_gradient():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            h = self.lin(x)
            if x.sum() > 10:
                with torch.no_grad():
                    getattr(h, "data").clamp_(max=1)  # noqa: B009
            return h * 2

    model = Own()
    extractor = create(model, ["lin", "mul"])
    extractor(X)
    feature = extractor(X * 3)["lin"]
    assert identical(feature, model.lin(X * 3))
    assert feature.requires_grad


@pytest.mark.parametrize("calls", [0, 1])
def test_V1_a_buffer_is_copied_in_compiled_code_too(calls):
    extractor = create(Wraps(Cache()), ["m"])
    for _ in range(calls):
        extractor(X)
    compiled = torch.compile(extractor, backend="eager")
    first, second = compiled(X * 2)["m"], compiled(X * 3)["m"]
    assert identical([first, second], [X * 2, X * 3])
