"""Whether a forward switches something over for a while, and must therefore not end half-way.

:mod:`.own_code` reads what code says. Code that is reached in ways that nobody can read (a decorator,
a callable in a list, ``getattr(self, name)()``) shows it when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from featuretap.ambient import Ambient
from featuretap.containers import copied, is_changed
from featuretap.held import attributes
from featuretap.structures import tensors_of
from featuretap.untouched import Untouched

from ._compat import no_torch_function, storage_id

__all__ = ["Switched"]


class Switched:
    """Compares a model before a forward, where it might end early, and at its end.

    Args:
        model: as it is before the forward.
        names: what the code of its own mentions; the buffers of layers that it does not name are
            theirs, and no layer takes back what it wrote.
        arguments: what the forward is given, which it may write and take back as well.
        caches: attributes of modules that are exchanged while the forward is recorded.

    Attributes:
        is_for_a_while: whether something was not as before in the middle, and was again at the end, or
            was changed again after the middle, or a parameter had been touched. Known after
            :meth:`look_again`.
        returning: the context variables that had another value in the middle and their own again at the
            end, if that is all: whoever leaves the forward in between can put them back.

    """

    def __init__(
        self,
        model: nn.Module,
        names: frozenset[str],
        arguments: Any,
        caches: Iterable[tuple[nn.Module, str]] = (),
    ) -> None:
        self._model = model
        self._untouched = Untouched(model)
        self._middle: Untouched | None = None
        self._ignored = {(id(module), name) for module, name in caches}
        found = tensors_of(arguments)
        for module in model.modules():
            buffers = module._buffers if isinstance(module._buffers, dict) else {}
            for name, value in [*attributes(module), *buffers.items()]:
                if name in names:
                    found += tensors_of(value)
        self._tensors = [tensor for tensor in found if not isinstance(tensor, nn.Parameter)]
        self._containers = [(found, copied(found)) for found in _containers_in(arguments)]
        self._contents = list(map(_mark, self._tensors))
        self._written: set[int] = set()
        self._ambient = Ambient()
        self._parameters = list(model.parameters())
        self._marks = self._marks_of_now()
        self._changes: set[object] = set()
        self.is_for_a_while = False
        self.returning: set[object] = set()

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
        returned = self._changes - self._changes_now()
        self.is_for_a_while |= not self._written.issubset(self._written_now())
        if self._middle is not None:
            # A depth that is counted up and down may end as another object than it began.
            again = self._middle.changes(may_grow=True)
            self.is_for_a_while |= not (self._changes - returned).isdisjoint(again)
        if not self.is_for_a_while and returned <= self._untouched.context_variables:
            self.returning = returned
        self.is_for_a_while |= bool(returned)

    def _changes_now(self) -> set[object]:
        arguments = (id(found) for found, content in self._containers if is_changed(found, content))
        return self._untouched.changes().union(arguments) - self._ignored

    def _written_now(self) -> Iterator[int]:
        with no_torch_function(), torch.no_grad():
            pairs = zip(self._tensors, self._contents, strict=True)
            yield from (n for n, (tensor, mark) in enumerate(pairs) if _mark(tensor) != mark)

    def _marks_of_now(self) -> list[object]:
        with no_torch_function(), torch.no_grad():
            return list(map(_mark, self._parameters))


def _containers_in(value: Any) -> Iterator[Any]:
    """Yield the lists and dicts that the caller of a forward has, too."""
    if isinstance(value, (list, dict)):
        yield value
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers_in(item)


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
        return about, 0 if tensor.is_inference() else tensor._version


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
