"""What objects hold in slots."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["has_slots", "slot_names", "slots_of"]


def has_slots(value: Any) -> bool:
    """Say whether the class of an object, or one it is made of, has slots."""
    return bool(slot_names(value))


def slots_of(value: Any) -> dict[str, Any]:
    """Return what an object holds in slots."""
    names = slot_names(value)
    return {name: getattr(value, name) for name in names if hasattr(value, name)} if names else {}


def slot_names(value: Any) -> tuple[str, ...]:
    """Return the names of the slots of an object."""
    kind: Any = type(value)
    return _of_class(kind)


@functools.lru_cache(maxsize=4096)
def _of_class(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ()) if base.__module__ != "builtins" else ()
        # As Python does with names that begin with two underscores.
        hide = f"_{base.__name__.lstrip('_')}"
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        found += [hide + n if n.startswith("__") and not n.endswith("__") else n for n in names]
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))
