"""What the code of a model changes that switches it to another mode, put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..inspecting.reading import Forward, names_in
from ..inspecting.trace_left import may_write
from .gradients import GradientFlags
from .random_numbers import RandomState, foreign_random_state
from .saved import SavedTensors
from .untouched import Untouched

__all__ = ["switched_back"]


@contextmanager
def switched_back(model: nn.Module, untouched: Untouched) -> Iterator[None]:
    """Put ``model`` back into the mode that ``untouched`` knows, with all that its own code has switched.

    A ``train`` of the model's own may freeze modules and parameters, fold weights, or fill buffers.
    Tensors are copied meanwhile where its code may write some.
    """
    saved, (_, restore_foreign) = SavedTensors(), foreign_random_state()
    if any(map(_may_write_when_switched, {type(module) for module in model.modules()})):
        for tensor in (*model.parameters(), *model.buffers()):
            saved.save(tensor)
    with ExitStack() as stack:
        stack.callback(restore_foreign)
        stack.callback(RandomState().restore)
        stack.callback(GradientFlags(model.parameters()).restore)
        stack.callback(saved.restore)
        stack.callback(untouched.restore)
        yield


def _may_write_when_switched(kind: type[nn.Module]) -> bool:
    own = (kind.train, kind.eval, kind.__setattr__)
    code = [Forward(kind, function) for function in own if not _is_torchs(function)]
    return any(may_write(one) or "data" in names_in(one) for one in code)


def _is_torchs(function: object) -> bool:
    return function in (nn.Module.train, nn.Module.eval, nn.Module.__setattr__)
