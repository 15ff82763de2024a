"""What tracing must not lose, and what it must leave behind untouched.

Tracing runs the model's own Python with stand-ins for tensors. Three things need care:

1. the *model*: that Python may set attributes, move counters, write buffers, draw random
   numbers. :class:`Guard` puts all of it back.
2. *real tensors*: buffers and constants stay real while tracing, so that Python may look at
   their sizes; but what is computed from them must be computed again on every call.
   :class:`RealTensorMode` hands each such operation to the tracer.
3. *modes*: a forward that never looks at ``training`` is the same in train and eval.
   :class:`.TrainingReads` says whether it looked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.overrides import TorchFunctionMode

from .inspecting.containers import contains
from .keeping.random_numbers import RandomState, foreign_random_state
from .keeping.saved import SavedTensors
from .keeping.untouched import Untouched

if TYPE_CHECKING:
    from .standins.real_tensors import RealTensors

__all__ = ["Guard", "RealTensorMode"]


class RealTensorMode(TorchFunctionMode):
    """Show the tracer every torch function, also those that no Proxy takes part in."""

    def __init__(self, real: RealTensors) -> None:
        super().__init__()
        self._real = real

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Send calls with a Proxy to the graph, and run the others under the tracer's eye."""
        kwargs = kwargs or {}
        if any(issubclass(kind, fx.Proxy) for kind in types) or contains(fx.Proxy, args, kwargs):
            return self._real.record_function(func, args, kwargs, sys._getframe(1))
        return self._real.run_real(func, args, kwargs, sys._getframe(1))


class Guard:
    """Everything that one trace may disturb, restored on exit whatever happened.

    Attributes:
        foreign_random_state_moved: whether Python's or NumPy's generator was used meanwhile; known
            after the exit.

    """

    def __init__(self, untouched: Untouched, tensors: SavedTensors) -> None:
        self.model = untouched
        self._tensors = tensors
        self._random = RandomState()
        self._foreign, self._restore_foreign = foreign_random_state()
        self.foreign_random_state_moved = False

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.restore()
        self._tensors.restore()
        # Other threads share the generators: rewind them only if this trace may have moved them.
        if self._tensors.drew_random_numbers:
            self._random.restore()
        self.foreign_random_state_moved = foreign_random_state()[0] != self._foreign
        if self.foreign_random_state_moved:
            self._restore_foreign()
