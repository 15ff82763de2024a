"""Rules M5, M6: the user's model is left alone."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import threading

import pytest
import torch
from torch import nn

import featuretap
from support import copied, identical, snapshot
from zoo import ZOO, NestedScopes


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ZOO)
def test_M5_listing_and_creating_leave_the_model_as_it_was(extract, names_of, name, mode):
    model = ZOO[name]().train(mode == "train")
    for index, module in enumerate(model.modules()):
        module.training = module.training ^ (index % 3 == 1)
    model.example()  # some need their weights frozen
    before = snapshot(model)
    names_of(model, suppress_diff_warning=True)
    assert snapshot(model) == before
    extract(model, "", suppress_diff_warning=True)
    assert snapshot(model) == before


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.log: list[object] = []

    def forward(self, x):
        self.seen += 1
        self.last = self.lin(x)
        self.log.append(self.last)
        self.lin.train(not self.lin.training)
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_M5_trap27_trap28_a_failed_listing_leaves_the_model_as_it_was(names_of, error):
    model = Fails()
    model.error = error
    before = snapshot(model)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        names_of(model, example_args=(torch.ones(2, 4),))
    assert snapshot(model) == before


def test_M5_trap28_attributes_set_in_forward_hold_no_stand_in(extract):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.history = []

        def forward(self, x):
            self.last = x * 2
            self.history.append(self.last)
            return self.last

    model = Remembers()
    extract(model, "mul")
    assert not hasattr(model, "last")
    assert model.history == []
    pickle.dumps(model.state_dict())


def test_M5_a_mistyped_name_leaves_the_model_as_it_was(extract):
    model = NestedScopes()
    before = snapshot(model)
    with pytest.raises(ValueError, match="no node"):
        extract(model, "stag")
    assert snapshot(model) == before


def test_M5_a_call_changes_what_the_models_forward_would_change(extract):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()).train()
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4)
    extract(model, "1")(x)
    twin(x)
    assert identical(model.state_dict(), twin.state_dict())


def test_M6_trap31_several_extractors_on_one_model_do_not_disturb_one_another(extract):
    model = ZOO["InPlaceModule"]()
    (x,) = model.example()
    first, second = extract(model, "lin"), extract(model, ["lin", "add"])
    expected = copied(first(x))
    second(x)
    assert identical(copied(first(x))["lin"], expected["lin"])


def test_M5_objects_and_nested_caches_hold_no_stand_in(extract):
    class Helper:
        cos = None

        def __call__(self, x):
            if self.cos is None:
                self.cos = x.new_zeros(4)
            return x + self.cos

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.helper = Helper()
            self.config = {"cache": {}}

        def forward(self, x):
            return self.helper(x) + self.config["cache"].setdefault(4, x.new_ones(4))

    model = Net()
    with contextlib.suppress(
        featuretap.UntraceableModelError
    ):  # fx; what is cached may depend on x
        extract(model, "")
    assert model.helper.cos is None
    assert model.config == {"cache": {}}
    assert type(model(torch.ones(4))) is torch.Tensor


def test_M5_creating_does_not_rewind_the_generators_for_other_threads(extract):
    model = nn.Sequential(nn.Linear(4, 4))
    drawn: list[float] = []
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            drawn.append((torch.rand(()).item(), torch.rand(()).item()))

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(30):
        extract(model, "0")
    stop.set()
    thread.join()
    assert len(set(drawn)) == len(drawn)


class AddsToItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return torch.relu(self.lin(x)) + x


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize("names", [["0", "2"], ["0.add", "1.lin", "1.add", "2"]])
def test_M6_a_hook_of_the_users_calls_another_extractor_of_the_model(extract, names, calls_before):
    model = nn.Sequential(AddsToItself(), AddsToItself(), nn.Linear(4, 2)).eval()
    x, probe = torch.ones(1, 4), torch.full((1, 4), 3.0)
    extractor, other = extract(model, names), extract(model, ["1.relu", "2"])
    expected = {name: copied(value) for name, value in extract(model, names)(x).items()}
    of_probe, seen = dict(other(probe)), []
    assert identical(expected["2"], model(x))
    assert identical(of_probe["2"], model(probe))
    for _ in range(calls_before):
        extractor(x)

    def probes(*_):
        if not seen:
            seen.append(None)
            seen[0] = dict(other(probe))

    handle = model[1].lin.register_forward_hook(probes)
    assert identical(dict(extractor(x)), expected)
    handle.remove()
    assert identical(seen, [of_probe])
    assert identical(dict(extractor(x)), expected)


@pytest.mark.parametrize("names", [["0", "2"], ["0.add", "1.add", "2"]])
def test_M6_hooks_of_the_users_call_extractors_inside_of_extractors(extract, names):
    model = nn.Sequential(AddsToItself(), AddsToItself(), nn.Linear(4, 2)).eval()
    inputs = [torch.full((1, 4), float(number)) for number in range(4)]
    extractor, other = extract(model, names), extract(model, ["1.lin", "2"])
    depth, seen = [0], []

    def calls(*_):
        if depth[0] < 3:
            depth[0] += 1
            seen.append((depth[0], other(inputs[depth[0]])["2"]))
            depth[0] -= 1

    model[0].lin.register_forward_hook(calls)
    outputs = []
    for _ in range(2):
        features = extractor(inputs[0])
        assert list(features) == names
        outputs.append(features["2"])
    depth[0] = 3
    assert all(identical(output, model(inputs[0])) for output in outputs)
    assert {number for number, _ in seen} == {1, 2, 3}
    assert all(identical(output, model(inputs[number])) for number, output in seen)


class InAnotherThread:
    """Calls a function over and over while entered, and counts answers that are not the expected one."""

    def __init__(self, call, expected):
        self.call, self.expected = call, expected
        self.answers = self.wrong = 0
        self.stopped = False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stopped:
            self.answers += 1
            self.wrong += not identical(self.call(), self.expected)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped = True
        self.thread.join()


class DropsOut(nn.Module):
    """A layer whose forward asks for the mode, so that both are traced."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.act = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)

    def forward(self, x):
        return nn.functional.dropout(self.act(self.norm(self.lin(x))), 0.5, self.training)


def several_layers():
    return nn.Sequential(*[DropsOut() for _ in range(3)]).eval()


@pytest.fixture
def switching_often():
    """Let threads take turns after every few instructions."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switching_often")
@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("is_listed", [True, False])
def test_M4_trap30_listing_and_creating_do_not_disturb_a_thread_that_runs_the_model(
    extract, names_of, is_listed, with_example
):
    model, x = several_layers(), torch.randn(4, 8)
    state = copied(model.state_dict())
    extractor, expected = extract(model, "1"), model(x)
    feature = extractor(x)["1"]
    example = {"example_args": (x,)} if with_example else {}
    with (
        InAnotherThread(lambda: model(x), expected) as of_model,
        InAnotherThread(lambda: extractor(x)["1"], feature) as of_extractor,
    ):
        for _ in range(20):
            if is_listed:
                names_of(model, suppress_diff_warning=True, **example)
            else:
                extract(model, ["1", "2.lin"], suppress_diff_warning=True, **example)
    assert of_model.answers
    assert of_extractor.answers
    assert (of_model.wrong, of_extractor.wrong) == (0, 0)
    assert identical(model.state_dict(), state)
    assert not any(module.training for module in model.modules())


class WithALock(nn.Module):
    """Nobody can copy it, so it runs itself."""

    def __init__(self):
        super().__init__()
        self.layers, self.lock = several_layers(), threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.layers(x)


@pytest.mark.parametrize("make", [several_layers, WithALock])
def test_M4_several_threads_create_with_an_example(extract, make):
    model, x = make().eval(), torch.randn(4, 8)
    before, errors = snapshot(model), []

    def create():
        try:
            for _ in range(5):
                extract(model, "", example_args=(x,), suppress_diff_warning=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert snapshot(model) == before
