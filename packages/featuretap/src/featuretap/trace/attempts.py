"""Tracing until it was done as carefully as the model needs, and undisturbed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ..keeping.carry_over import Again
from ..keeping.untouched import Untouched
from ..messages import untraceable
from ..modules import ModuleTree
from ..recording import Recording
from ..tracing import FeatureTracer

__all__ = ["record"]

# fx patches ``nn.Module`` for the whole process while it traces. Two traces at once would undo
# each other's patches in the wrong order, so there is one at a time.
_ONE_TRACE = threading.RLock()

_ATTEMPTS = 3


def record(
    tracer: FeatureTracer, tree: ModuleTree, untouched: Untouched, concrete_args: Mapping[str, Any]
) -> Recording:
    """Record one forward of a model, in the mode that its ``training`` flags say.

    Raises:
        UntraceableModelError: if the forward of the model itself cannot be recorded.

    """
    with _ONE_TRACE:
        # Another thread, or a library that is imported on first use, may draw meanwhile; only a
        # forward that does it every time is refused.
        for _ in range(_ATTEMPTS):
            if not _trace_twice_if_needed(tracer, tree, untouched, concrete_args):
                return tracer.recording
    reason = "the forward draws from Python's or NumPy's random numbers"
    raise untraceable(tree.model, reason)


def _trace_twice_if_needed(
    tracer: FeatureTracer, tree: ModuleTree, untouched: Untouched, concrete_args: Mapping[str, Any]
) -> bool:
    try:
        return tracer.trace_once(tree, untouched, concrete_args)
    except Again:
        tracer.is_careful = True
    return tracer.trace_once(tree, untouched, concrete_args)
