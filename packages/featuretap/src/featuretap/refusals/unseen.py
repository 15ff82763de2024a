"""Operations on real tensors that torch shows to no torch-function mode, so that a graph would lose them.

Compiled code of TorchScript, transforms of ``torch.func``, tensors made of other tensors by Python classes
(``nn.Parameter(t)``, ``t.as_subclass(...)``) and assignments such as ``t.imag = v`` reach the dispatcher
unseen. What they compute of a buffer or of a random number would be the same in every call.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _compat

if TYPE_CHECKING:
    from ..standins.real_tensors import RealTensors

__all__ = ["UnseenOperations"]


class UnseenOperations(_compat.TorchDispatchMode):  # type: ignore[misc]
    """Shows a trace what its torch-function mode is not shown."""

    def __init__(self, real: RealTensors) -> None:
        super().__init__()
        self._real = real

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run ``func``, unless the model's own code does what nobody has recorded."""
        kwargs = kwargs or {}
        if _is_models(sys._getframe(1)):
            self._real.check_unseen(func, args, kwargs)
        return func(*args, **kwargs)


def _is_models(frame: types.FrameType | None) -> bool:
    """Say whether the code of the model runs an operation: not ours, on its behalf or our own."""
    while frame is not None:
        origin = str(frame.f_globals.get("__name__")).partition(".")[0]
        if origin == "featuretap":
            return False
        if origin not in _PASSED_ON:
            return True
        frame = frame.f_back
    return False


_PASSED_ON = frozenset({"torch", "copy", "contextlib", "functools"})
