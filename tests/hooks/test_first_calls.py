"""Rules C1, M5, V1, V5, E3: the first calls of an extractor, and those after them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import featuretap_hooks
from support import identical

create = featuretap_hooks.create_feature_extractor
X = torch.linspace(-1, 1, 8).view(4, 2)


class HasAnUnusedParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.mark.parametrize("names", [["unused"], ["relu", "unused"], ["linear", "unused"]])
@pytest.mark.parametrize("early_stop", [True, False])
def test_V5_a_parameter_that_the_forward_does_not_use_is_there_in_each_call(names, early_stop):
    model = HasAnUnusedParameter().eval()
    extractor = create(model, names, early_stop=early_stop)
    for _ in range(4):
        features = extractor(X)
        assert set(features) == set(names)
        assert identical(features["unused"], model.unused)


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(x).sin()


@pytest.mark.parametrize("names", [["s*"], ["sin"], [nn.BatchNorm1d]])
def test_M5_the_first_calls_in_two_threads_lose_no_update_of_a_buffer(names):
    for _ in range(15):
        model = Normalized().train()
        extractor, barrier = create(model, names), threading.Barrier(2)

        def run(extractor=extractor, barrier=barrier):
            barrier.wait()
            extractor(X)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert int(model.norm.num_batches_tracked) == 2


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = None
        self.late = nn.ReLU()

    def forward(self, x):
        setattr(self, "last", x.detach())  # noqa: B010 (nobody reads it)
        return self.late(x.sin())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_C1_a_copy_of_an_extractor_ends_its_forwards_early_too(copied):
    model, calls = Remembers().eval(), []
    extractor = create(model, ["sin"])
    for _ in range(3):
        extractor(X)
    new = copied(extractor)
    new.late.forward = lambda x: calls.append(1) or x
    for count in (1, 1, 1):
        new(X)
        assert len(calls) == count


class KeepsWhatItComputes(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(2))
        self.cache = {}

    def forward(self, x):
        key = str(x.dtype)
        if key not in self.cache:
            self.cache[key] = self.bias * 2
        if self.look is not None:
            self.look()
        found = [self.cache.get(key), *self.cache.values(), *dict(self.cache).values()]
        return x + found[0] + found[1] + found[2] + len(self.cache.copy()) + len(list(self.cache))

    look = None


def test_V1_a_cache_that_is_cold_can_be_read_in_all_ways():
    model, seen = KeepsWhatItComputes(), []
    expected = model(X)
    kept = model.cache["torch.float32"]
    extractor = create(model, ["add_4"])

    def look():
        seen.append((list(model.cache.items()), len(dict(model.cache))))

    def look_elsewhere():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    model.look = look_elsewhere
    assert identical(extractor(X)["add_4"], expected)
    assert len(seen) == 1
    items, count = seen[0]
    assert count == 1
    assert items[0][1] is kept
    assert type(model.cache) is dict
    assert model.cache["torch.float32"] is kept


class TakesTheSign(nn.Module):
    def forward(self, x):
        y = x.neg()
        y.data.abs_()
        return y + 1


def test_V1_the_sign_of_a_zero_is_kept_from_the_first_call_on():
    extractor = create(TakesTheSign(), ["neg"])
    for _ in range(3):
        assert extractor(torch.zeros(2))["neg"].signbit().tolist() == [True, True]


def test_E3_what_only_watched_forwards_can_do_is_refused_for_a_graph():
    graph = create(nn.Sequential(nn.ReLU()), ["0"], backend="fx")
    for option in ({"missing": "skip"}, {"early_stop": False}):
        with pytest.raises(ValueError, match="this model is an extractor of fx, a graph"):
            create(graph, ["0"], **option)
