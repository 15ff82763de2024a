"""Whether a forward switches something over for a while, and must therefore not end half-way.

:mod:`.inspecting.own_code` reads what code says. Code that is reached in ways that nobody can read (a
decorator, a callable in a list, ``getattr(self, name)()``) shows it when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from featuretap._compat import no_torch_function, storage_id
from featuretap.keeping.ambient import Ambient
from featuretap.keeping.saved import version_of
from featuretap.keeping.untouched import Untouched

from ..findings import Findings
from ..inspecting.writable import GivenContainers, writable

__all__ = ["Switched"]


class Switched:
    """Compares a model before a forward, where it might end early, and at its end.

    Args:
        found: what is known of the model; the buffers of layers that its code does not name are theirs,
            and no layer takes back what it wrote.
        arguments: what the forward is given, which it may write and take back as well.

    Attributes:
        is_for_a_while: whether something was not as before in the middle, and was again at the end, or
            was changed again after the middle, or a parameter had been touched. Known after
            :meth:`look_again`.
        returning: the context variables that had another value in the middle and their own again at the
            end, if that is all: whoever leaves the forward in between can put them back.
        staying: what had another value in the middle, and the same at the end.

    """

    def __init__(self, found: Findings, arguments: Any) -> None:
        self._model = found.tree.model
        self._untouched = Untouched(self._model)
        self._middle: Untouched | None = None
        # They are exchanged while the forward is recorded.
        self._ignored = {(id(module), name) for module, name in found.caches}
        self._tensors = writable(found.named_places, arguments)
        self._containers = GivenContainers(arguments)
        self._contents = {key: _mark(tensor) for key, tensor in self._tensors.items()}
        self._written: set[object] = set()
        self._ambient = Ambient()
        self._parameters = list(self._model.parameters())
        self._marks = self._marks_of_now()
        self._changes: set[object] = set()
        self.is_for_a_while = False
        self.returning: set[object] = set()
        self.staying: set[object] = set()

    def may_end(self) -> bool:
        """Say whether everything is as it was: then the forward may end here."""
        self._changes = self._changes_now()
        self._written = set(self._written_now())
        self.is_for_a_while = self._marks_of_now() != self._marks or self._ambient.settings_changed
        if self._changes:
            self._middle = Untouched(self._model)
        return not self._changes and not self._written and not self.is_for_a_while

    def look_again(self) -> None:
        """Look whether what was changed in the middle is what it was before, now that it is over."""
        changes, written = self._changes_now(), set(self._written_now())
        returned = self._changes - changes
        self.staying = (self._changes & changes) | (self._written & written)
        self.is_for_a_while |= not self._written <= written
        if self._middle is not None:
            # A depth that is counted up and down may end as another object than it began.
            again = self._middle.changes(may_grow=True)
            self.is_for_a_while |= not (self._changes - returned).isdisjoint(again)
        if not self.is_for_a_while and returned <= self._untouched.context_variables:
            self.returning = returned
        self.is_for_a_while |= bool(returned)

    def _changes_now(self) -> set[object]:
        return self._untouched.changes().union(self._containers.changes()) - self._ignored

    def _written_now(self) -> Iterator[object]:
        with no_torch_function(), torch.no_grad():
            for key, tensor in self._tensors.items():
                if _mark(tensor) != self._contents[key]:
                    yield key

    def _marks_of_now(self) -> list[object]:
        with no_torch_function(), torch.no_grad():
            return list(map(_mark, self._parameters))


def _mark(tensor: torch.Tensor) -> object:
    """Return what tells whether a tensor was written, also through ``.data``, or exchanged."""
    # Of a nested one, each tensor has a shape of its own.
    shape = None if tensor.is_nested else tensor.shape
    about = (tensor.dtype, shape, tensor.requires_grad, storage_id(tensor))
    try:
        integers = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        return about, int(integers.sum(dtype=torch.int64))
    except (RuntimeError, NotImplementedError, KeyError, TypeError):
        # No content that could be read: meta tensors, sharded, quantized and masked ones.
        return about, version_of(tensor)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
