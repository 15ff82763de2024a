"""Whether a forward switches something over for a while, and must therefore not end half-way.

:mod:`.own_code` reads what code says. Code that is reached in ways that nobody can read (a decorator,
a callable in a list, ``getattr(self, name)()``) shows it when it runs.
"""

from __future__ import annotations

import torch
from torch import nn

from featuretap.untouched import Untouched

from ._compat import no_torch_function, storage_id

__all__ = ["Switched"]


class Switched:
    """Compares a model before a forward, where it might end early, and at its end.

    Args:
        model: as it is before the forward.

    Attributes:
        is_for_a_while: whether something was not as before in the middle, and was again at the end, or
            a parameter had been touched. Known after :meth:`look_again`.

    """

    def __init__(self, model: nn.Module) -> None:
        self._untouched = Untouched(model)
        self._parameters = list(model.parameters())
        self._marks = self._marks_of_now()
        self._changes: set[object] = set()
        self.is_for_a_while = False

    def may_end(self) -> bool:
        """Say whether everything is as it was: then the forward may end here."""
        self._changes = self._untouched.changes()
        self.is_for_a_while = self._marks_of_now() != self._marks
        return not self._changes and not self.is_for_a_while

    def look_again(self) -> None:
        """Look whether what was changed in the middle is what it was before, now that it is over."""
        self.is_for_a_while |= not self._changes <= self._untouched.changes()

    def _marks_of_now(self) -> list[object]:
        with no_torch_function(), torch.no_grad():
            return list(map(_mark, self._parameters))


def _mark(parameter: nn.Parameter) -> object:
    """Return what tells whether a parameter was written, also through ``.data``, or exchanged."""
    about = (parameter.dtype, parameter.requires_grad, storage_id(parameter))
    try:
        integers = parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()])
        return about, int(integers.sum(dtype=torch.int64))
    except (RuntimeError, NotImplementedError, KeyError):
        # No content that could be read: meta tensors, sharded and quantized ones.
        return about, 0 if parameter.is_inference() else parameter._version


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
