"""What tracing must not lose, and what it must leave behind untouched.

Tracing runs the model's own Python with stand-ins for tensors. Three things need care:

1. the *model*: that Python may set attributes, move counters, write buffers, draw random
   numbers. :class:`Guard` puts all of it back.
2. *real tensors*: buffers and constants stay real while tracing, so that Python may look at
   their sizes; but what is computed from them must be computed again on every call.
   :class:`RealTensorMode` hands each such operation to the tracer.
3. *modes*: a forward that never looks at ``training`` is the same in train and eval.
   :class:`TrainingReads` says whether it looked.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from .keeping.saved import SavedTensors
from .keeping.untouched import Untouched

if TYPE_CHECKING:
    from .standins.real_tensors import RealTensors

__all__ = ["Guard", "RealTensorMode", "TrainingReads", "contains"]


class RandomState:
    """The state of torch's random generators on the CPU and on every CUDA device in use."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if in_use else []

    @property
    def moved(self) -> bool:
        """Whether numbers were drawn since."""
        return self._content() != RandomState()._content()

    def _content(self) -> list[bytes]:
        # From the memory itself: a mode such as that of fake tensors would run a comparison its own way.
        states = (self._cpu, *self._cuda)
        return [ctypes.string_at(state.data_ptr(), state.numel()) for state in states]

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def foreign_random_state() -> tuple[object, Callable[[], None]]:
    """Return the state of Python's and NumPy's global generators, and a function that restores it.

    Draws from these leave no trace in a graph, so a trace that moved them cannot be faithful.
    """
    python = random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    # The older tuple takes twice as long, and is of one kind of generator alone.
    numpy = numpy_random.get_state(legacy=False) if numpy_random is not None else None

    def restore() -> None:
        random.setstate(python)
        if numpy_random is not None:
            numpy_random.set_state(numpy)

    return (hash(python), _plain(numpy)), restore


def _plain(state: Any) -> object:
    """Return a state of NumPy's, dicts of numbers and arrays, as what can be compared."""
    if isinstance(state, dict):
        return [_plain(value) for value in state.values()]
    return state.tobytes() if hasattr(state, "tobytes") else state


class TrainingReads:
    """While entered, note whether this thread reads the ``training`` flag of any module.

    A data descriptor on ``nn.Module`` comes before the instance's own attribute, so reads are
    seen without touching any module. Other threads pass through it unseen.
    """

    def __init__(self) -> None:
        self.seen = False
        self._thread = threading.get_ident()

    def _get(self, module: nn.Module) -> bool:
        if threading.get_ident() == self._thread:
            self.seen = True
        try:
            return bool(vars(module)["training"])
        except KeyError:
            raise AttributeError("training") from None

    @staticmethod
    def _set(module: nn.Module, value: bool) -> None:
        vars(module)["training"] = value

    def __enter__(self) -> TrainingReads:
        nn.Module.training = property(self._get, self._set)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del nn.Module.training


def contains(kinds: type | tuple[type, ...], *values: object) -> bool:
    """Say whether any of the nested ``values`` holds an instance of ``kinds``."""
    for value in values:
        if isinstance(value, kinds):
            return True
        if isinstance(value, (tuple, list)):
            if contains(kinds, *value):
                return True
        elif isinstance(value, dict):
            if contains(kinds, *dict.values(value)):
                return True
        elif isinstance(value, slice) and contains(kinds, value.start, value.stop, value.step):
            return True
    return False


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
