"""What a feature is, in a few words: its shape and dtype, and the values inside a container."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from .text import one_line

__all__ = ["dtype_text", "is_plain", "leaves", "shape_text"]

_LONGEST = 24


def is_plain(tensor: torch.Tensor) -> bool:
    """Say whether ``tensor`` is a block of numbers, not sparse, nested or quantized."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Return the values inside a container, by index, key or field; ``None`` if it is none."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return [(str(index), item) for index, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return None


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value inside ``value`` by its name: ``lstm[0]``, ``lstm[1][0]``, ``out[loss]``."""
    inside = _items(value)
    if inside is None:
        yield name, value
    for key, item in inside or ():
        yield from leaves(f"{name}[{key}]", item)


def shape_text(value: Any) -> str:
    """Describe a shape as ``--input`` is written; what has no shape shows its value.

    >>> shape_text(torch.zeros(1, 3)), shape_text((torch.zeros(2), None)), shape_text(7)
    ('1x3', '(2, None)', '= 7')
    """
    if isinstance(value, torch.Tensor):
        return "nested" if value.is_nested else "x".join(map(str, value.shape)) or "scalar"
    inside = _items(value)
    if inside is None:
        text = one_line(repr(tuple(value) if isinstance(value, torch.Size) else value))
        return f"= {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"
    return f"({', '.join(shape_text(item).removeprefix('= ') for _, item in inside)})"


def dtype_text(value: Any) -> str:
    """Name the dtype of a tensor, or the type of anything else; of a container those inside."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch.")
    inside = _items(value)
    if not inside:
        return type(value).__name__
    texts = list(dict.fromkeys(dtype_text(item) for _, item in inside))
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
