"""Real tensors whose sizes a trace does not know, because they follow from values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from .. import _compat
from ..inspecting.containers import instances_in
from .asking import RESIZES
from .likeness import PARTS

__all__ = ["Sizes"]

_RESIZED = "the forward reads the size of a tensor that an operation on stand-ins may have resized"
_UNSIZED = (
    "the forward reads a size that follows from the values of a buffer, a parameter or a random "
    "number, or of what is computed of these or of the inputs; it may be another one in the next call"
)

_LOOKS_AT_DIMENSIONS = frozenset("ndim dim ndimension".split())
_LOOKS_AT_SIZE = frozenset(
    "shape nbytes size numel nelement stride __len__ is_contiguous storage_offset _nnz".split()
)
# As aten tags its operators (``dynamic_output_shape``), and what is made of them.
_SIZED_BY_VALUES = frozenset(
    "nonzero argwhere masked_select unique unique_consecutive bincount nms batched_nms to_sparse "
    "to_sparse_coo to_sparse_csr to_sparse_csc _pack_padded_sequence _pad_packed_sequence".split()
)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Sizes:
    """Which real tensors of a trace have a size that says nothing of later calls, by identity."""

    def __init__(self) -> None:
        self._resized: set[int] = set()
        self._unsized: set[int] = set()

    def note_resized(self, name: str, args: Any, kwargs: Any) -> list[torch.Tensor]:
        """Note the tensors to which a call that is only recorded may give another size."""
        given = [kwargs.get("out"), *(args[:1] if name in RESIZES else ())]
        resized = list(instances_in(torch.Tensor, *given))
        self._resized.update(map(id, resized))
        return resized

    def why_not(self, name: str, args: Any, kwargs: Any, volatile: Collection[int]) -> str | None:
        """Name the reason why a forward must not call ``name``, or read it off ``args[0]``, if any.

        Args:
            name: of the function or attribute.
            args: its arguments.
            kwargs: its keyword arguments.
            volatile: ids of the tensors among these whose values may be others.

        """
        if volatile and name in PARTS and _has_number(volatile, name, args, kwargs):
            return _UNSIZED
        if not (self._resized or self._unsized):
            return None
        tensor = id(args[0]) if args else 0
        if tensor in self._resized and name in _LOOKS_AT_SIZE | _LOOKS_AT_DIMENSIONS | PARTS:
            return _RESIZED
        return _UNSIZED if tensor in self._unsized and name in _LOOKS_AT_SIZE | PARTS else None

    def note(
        self, name: str, args: Any, kwargs: Any, volatile: Collection[int], result: Any
    ) -> None:
        """Note what a call returned; the other arguments are those of :meth:`why_not`."""
        given = set(map(id, instances_in(torch.Tensor, args, kwargs)))
        made = list(instances_in(torch.Tensor, result))
        if not self._resized.isdisjoint(given):
            self._resized.update(map(id, made))
        if not self._unsized.isdisjoint(given) or (
            volatile and _follows_from(volatile, name, args, kwargs)
        ):
            # What has no dimensions has no size either.
            self._unsized.update(id(tensor) for tensor in made if tensor.dim())


def _follows_from(volatile: Collection[int], name: str, args: Any, kwargs: Any) -> bool:
    """Say whether the size of a result follows from the values of one of the tensors ``volatile``."""
    if name in _SIZED_BY_VALUES:
        return True
    if name in ("where", "one_hot"):
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        repeats = args[1:2] or [kwargs.get("repeats", args[0])]
        return "output_size" not in kwargs and id(repeats[0]) in volatile
    if name == "tensor_split":
        return any(
            id(tensor) in volatile for tensor in instances_in(torch.Tensor, args[1:], kwargs)
        )
    if name == "__getitem__":
        return any(id(tensor) in volatile for tensor in _sizing(args[1]))
    return _has_number(volatile, name, args, kwargs)


def _has_number(volatile: Collection[int], name: str, args: Any, kwargs: Any) -> bool:
    """Say whether one of the tensors ``volatile`` is given where a number is expected."""
    if name.startswith("__"):
        return False
    places = [
        place
        for place, value in (*enumerate(args), *kwargs.items())
        for tensor in instances_in(torch.Tensor, value)
        if id(tensor) in volatile and tensor.numel() == 1 and tensor.dtype in _INTEGERS
    ]
    schemas = _compat.aten_schemas(name) if places else ()
    return any(not any(_takes_tensors(s, place) for s in schemas) for place in places)


def _takes_tensors(schema: Any, place: int | str) -> bool:
    """Say whether an operator takes tensors as its argument of this name, or at this position."""
    arguments = schema.arguments
    if isinstance(place, int):
        found = arguments[place : place + 1]
    else:
        found = [argument for argument in arguments if argument.name == place]
    return any("Tensor" in str(argument.type) for argument in found)


def _sizing(index: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in an index whose values tell how many items it takes."""
    for part in index if isinstance(index, (tuple, list)) else (index,):
        if isinstance(part, slice):
            yield from instances_in(torch.Tensor, part)
        elif isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8):
            yield part
