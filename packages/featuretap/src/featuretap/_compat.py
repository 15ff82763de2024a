"""The private corners of torch that featuretap leans on, one small function each.

Each says on which torch versions it was checked, and what happens where the corner is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

__all__ = [
    "aten_schemas",
    "autocast_arguments",
    "draws_random_numbers",
    "preserve_version",
    "storage_id",
]


@cache
def aten_schemas(name: str) -> Sequence[Any]:
    """Return the schemas of all overloads of ``aten::name``; empty if there is no such operator.

    A schema says which arguments an operator writes and which its results may alias.
    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    try:
        return tuple(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))
    except RuntimeError:
        return ()


@cache
def draws_random_numbers(name: str) -> bool:
    """Say whether some overload of ``aten::name`` is tagged as drawing seeded random numbers.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(packet, overload).tags for overload in packet.overloads())


def autocast_arguments(manager: torch.autocast) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that make a context manager like ``manager``.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    return (
        ("device_type", manager.device),
        ("dtype", manager.fast_dtype),
        ("enabled", manager._enabled),
        ("cache_enabled", manager._cache_enabled),
    )


def storage_id(tensor: torch.Tensor) -> int:
    """Return a number that tensors share exactly if they share storage, also on the meta device.

    Tensors without a storage of their own (sparse, mkldnn) count as alone.
    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


@contextlib.contextmanager
def preserve_version(tensor: torch.Tensor) -> Iterator[None]:
    """Write ``tensor`` without autograd counting it as a modification.

    Used only to put a value back where tracing changed it: for autograd nothing happened.
    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    guard: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
    with guard(tensor):
        yield
