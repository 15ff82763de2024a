"""Functions that are others while a trace runs, wherever they are called from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..keeping.outside_places import MISSING, write_attribute

__all__ = ["Replacement", "attributes_replaced"]

# The owner and the name of a function, and what makes the one that stands for it.
Replacement = tuple[Any, str, Callable[[Any], Any]]


@contextmanager
def attributes_replaced(replacements: Iterable[Replacement]) -> Iterator[None]:
    """While entered, others stand for attributes of classes and Python modules."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, name, make in replacements:
            own = vars(owner).get(name, MISSING)
            before.append((owner, name, own))
            setattr(owner, name, make(getattr(owner, name) if own is MISSING else own))
        yield
    finally:
        for owner, name, own in reversed(before):
            write_attribute(owner, name, own)
