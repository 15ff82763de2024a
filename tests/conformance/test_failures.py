"""Rule M5: whatever fails, wherever, model and process are left as they were."""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import zoo
from support import identical, process_state, snapshot
from zoo import ZOO

KINDS = (RuntimeError, KeyboardInterrupt, torch.cuda.OutOfMemoryError, MemoryError)


class Failing:
    """Raises when the forwards of the zoo come to a line for the ``at``-th time."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.lines = 0
        self.kind = KINDS[(at or 0) % len(KINDS)]

    def trace(self, frame, event, arg):
        code = frame.f_code
        if code.co_filename != zoo.__file__ or code.co_name in ("__init__", "example"):
            return None
        line = linecache.getline(code.co_filename, frame.f_lineno).strip()
        # To raise between the body of a ``with`` and its exit would keep any program from leaving it.
        if event == "line" and not line.startswith("with "):
            self.lines += 1
            if self.lines - 1 == self.at:
                raise self.kind("on purpose")
        return self.trace

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            yield
        finally:
            sys.settrace(before)


def fails_everywhere(work, check):
    """Run ``work`` once for each line of the forwards, and let it fail there."""
    work()  # a library that is imported on first use may draw, and then a trace is done again
    counter = Failing()
    with counter.on():
        work()
    assert counter.lines
    for at in range(counter.lines):
        failing = Failing(at)
        with contextlib.suppress(BaseException), failing.on():
            work()
        assert failing.lines > at
        check(at)


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_M5_a_failure_at_any_line_of_a_listing_or_creating_leaves_no_trace(extract, names_of, name):
    model = ZOO[name]().eval()
    args = model.example()
    names = list(ZOO[name]().eval().reference(*model.example()))
    before = snapshot(model)

    def check(at):
        assert snapshot(model) == before, at

    fails_everywhere(lambda: names_of(model, suppress_diff_warning=True), check)
    options = {"suppress_diff_warning": True, "example_args": args}
    fails_everywhere(lambda: extract(model, names, **options), check)


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_M5_a_failure_at_any_line_of_a_call_leaves_no_hook_and_no_patch(extract, name):
    """What the forward had written by then, it has written, as the model's own would have."""
    model = ZOO[name]().eval()
    names = list(ZOO[name]().eval().reference(*model.example()))
    extractor = extract(model, names, suppress_diff_warning=True)
    hooks = [list(module._forward_hooks) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    before = process_state()

    def check(at):
        assert [list(module._forward_hooks) for module in model.modules()] == hooks
        assert [module.training for module in model.modules()] == flags
        assert process_state() == before, at

    def work():
        extractor(*model.example())

    work()
    counter = Failing()
    with counter.on():
        work()
    if counter.lines:  # fx runs code of its own
        fails_everywhere(work, check)


class Moves(nn.Module):
    """All that a forward moves: statistics, buffers, random numbers, attributes."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.keeps = nn.BatchNorm1d(4), nn.Dropout(), Keeps()
        self.register_buffer("calls", torch.zeros(()))
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        self.calls += 1
        x = self.keeps(self.drop(self.norm(x)))
        return self.last(x + torch.rand(x.shape[1]))


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.count, self.log = 0, []

    def forward(self, x):
        if x.sum() > -1e9:
            self.seen.add_(x.mean(0))
        self.count += 1
        self.log.append(self.count)
        return x


class FailsAt(nn.Linear):
    """A leaf that fails when it is told to."""

    kind: type[BaseException] | None = None

    def forward(self, x):
        if FailsAt.kind is not None:
            raise FailsAt.kind("on purpose")
        return super().forward(x)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_M5_a_call_that_fails_puts_state_and_random_numbers_back(extract, kind, mode):
    model = Moves()
    model.last = FailsAt(4, 4)
    options = {"tracer_kwargs": {"leaf_modules": [FailsAt]}}
    extractor = extract(model.train(mode == "train"), "", **options)
    x = torch.randn(3, 4)
    for _ in range(2):  # the first call, and a later one
        before = contents(model)
        FailsAt.kind = kind
        try:
            with pytest.raises(kind, match="on purpose"):
                extractor(x)
        finally:
            FailsAt.kind = None
        assert contents(model) == before
        extractor(x)
        assert contents(model) != before


@pytest.mark.only("hooks", why="a graph reaches all its nodes")
def test_M5_a_call_that_does_not_reach_a_node_puts_state_and_random_numbers_back(extract):
    class Reaches(Moves):
        def forward(self, x):
            return super().forward(x) * 2 if x.sum() > 1e9 else super().forward(x)

    model = Reaches()
    extractor, x = extract(model, "mul"), torch.randn(3, 4)
    before = contents(model)
    with pytest.raises(ValueError, match="did not reach"):
        extractor(x)
    assert contents(model) == before


def contents(model):
    """What a failed call must leave alone; autograd's count of writes is none of it."""
    tensors = {key: value.tolist() for key, value in model.state_dict().items()}
    attributes = [
        (m.training, getattr(m, "count", 0), [*getattr(m, "log", ())]) for m in model.modules()
    ]
    return tensors, attributes, torch.get_rng_state().tolist()


def _guard(module, args, output):
    raise FloatingPointError("a NaN")


@pytest.mark.parametrize("calls_before", [0, 1, 2])
@pytest.mark.parametrize("names", [["0", "1"], ["1"], ["1", "2"]])
def test_V2_what_a_hook_of_the_users_raises_comes_out_of_the_call(extract, names, calls_before):
    """The hook is on the module where the forward would end, or one before it."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    extractor, x = extract(model, names), torch.ones(1, 2)
    for _ in range(calls_before):
        extractor(x)
    handle = model[1].register_forward_hook(_guard)
    with pytest.raises(FloatingPointError, match="a NaN"):
        extractor(x)
    handle.remove()
    assert identical(extractor(x)[names[-1]], model[: int(names[-1]) + 1](x))


class TriesAgain(nn.Module):
    """The first call of a layer fails; the second runs while that error is handled."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)

    def forward(self, x):
        try:
            y = self.first(x)
        except FloatingPointError:
            y = self.second(x)
        return y * 2


@pytest.mark.only("hooks", why="a graph has no exceptions")
@pytest.mark.parametrize("names", [["second"], ["second", ""], ["second", "mul"]])
def test_V1_a_layer_that_runs_while_an_error_is_handled_is_taken(extract, names):
    model = TriesAgain()
    model.first.register_forward_hook(_guard)
    extractor, x = extract(model, names), torch.ones(1, 2)
    for _ in range(3):
        features = extractor(x)
        assert identical(features["second"], model.second(x))
        assert list(features) == names
