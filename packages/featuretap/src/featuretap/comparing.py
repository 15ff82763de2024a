"""Two values of one node beside each other."""

from __future__ import annotations

import math
import struct
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

__all__ = ["describe", "identical", "largest_difference"]


def identical(a: Any, b: Any, within: frozenset[tuple[int, int]] = frozenset()) -> bool:
    """Say whether two values are the same bit for bit, and of the same structure.

    Args:
        a: a value.
        b: another.
        within: the objects that hold them, by ``id``, for objects may hold each other.

    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return describe(a) == describe(b) and _same_content(a.detach(), b.detach())
    if type(a) is not type(b):
        return False
    if a is b:
        return True
    kind: Any = type(a)
    if kind.__eq__ is object.__eq__:
        if kind is object or isinstance(a, _NOTHING_INSIDE):
            return False
        # It only says whether it is the same object: what it holds is compared.
        if (id(a), id(b)) in within:
            return True
        within |= {(id(a), id(b))}
        a, b = _held_by(a), _held_by(b)
    parts, others = _parts(a), _parts(b)
    if parts is None or others is None:
        return parts is others and _is_equal(a, b)
    return [k for k, _ in parts] == [k for k, _ in others] and all(
        identical(x, y, within) for (_, x), (_, y) in zip(parts, others, strict=True)
    )


def _held_by(value: Any) -> Any:
    """Return what an object holds, as pickle would take it, and of a function what it is made of."""
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        return value.__code__, cells, value.__defaults__, value.__kwdefaults__
    kind: Any = type(value)
    try:
        return kind.__reduce_ex__(value, 2)
    except Exception:  # nothing to be compared: a lock, an iterator, a user's own method that fails
        return None


_EMPTY = types.CellType()
_NOTHING_INSIDE = (type, types.ModuleType, torch.layout)


def _is_equal(a: Any, b: Any) -> bool:
    if type(a) is float:
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    try:
        equal = a == b
        return bool(equal.all()) if hasattr(equal, "all") else bool(equal)
    except Exception:  # of the user's own ``__eq__``
        return False


def largest_difference(a: Any, b: Any) -> float | None:
    """Return by how much two values differ at most; ``None`` where their structure differs."""
    pairs = list(zip(_tensors(a), _tensors(b), strict=False))
    if not pairs or any(describe(x) != describe(y) or x.layout != y.layout for x, y in pairs):
        return None
    return max(_distance(x, y) for x, y in pairs)


def describe(value: Any) -> str:
    """Say what kind of value this is: ``float32 2x4``, ``tuple of 3``, ``int``."""
    if isinstance(value, torch.Tensor):
        if value.is_nested:
            return f"{str(value.dtype).removeprefix('torch.')} nested of {value.size(0)}"
        shape = "x".join(map(str, value.shape)) or "scalar"
        return f"{str(value.dtype).removeprefix('torch.')} {shape}"
    parts = _parts(value)
    return type(value).__name__ + ("" if parts is None else f" of {len(parts)}")


def _same_content(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.device != b.device or a.layout != b.layout:
        return False
    if a.is_meta:
        return True
    if a.is_nested:
        return identical(a.unbind(), b.unbind())
    if a.is_quantized:
        return torch.equal(a.int_repr(), b.int_repr())
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    if a.element_size() == 1:
        return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    # Where both are no number, whichever; but zeros have a sign.
    same = a.eq(b) & a.signbit().eq(b.signbit())
    return bool((same | (a.ne(a) & b.ne(b))).all())


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.is_meta or not a.numel():
        return 0.0
    kind = torch.complex128 if a.is_complex() else torch.float64
    a, b = (t if t.layout is torch.strided else t.to_dense() for t in (a.detach(), b.detach()))
    wide = [(t.dequantize() if t.is_quantized else t).cpu().to(kind) for t in (a, b)]
    return float((wide[0] - wide[1]).abs().nan_to_num(nan=float("inf")).max())


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """Return what a container holds; ``None`` for what is no container."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (tuple, list, deque)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield from value.unbind() if value.is_nested else (value,)
    for _, part in _parts(value) or ():
        yield from _tensors(part)
