"""Rule M5: whatever fails, wherever, model and process are left as they were."""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator

import pytest
import torch

import zoo
from support import process_state, snapshot
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
