"""Looks at objects of the user's without a word to them.

An object may answer a question about its class or its attributes by itself: a proxy of what is gone
raises, a deprecated name warns, settings that are not there yet are loaded. So what it is, is read off its
very type.
"""

from __future__ import annotations

import types
from typing import Any

__all__ = ["ORIGINAL", "attributes_of", "has_attributes", "is_a", "original_of"]

#: The attribute in which a function that stands for another, for a while, keeps that one.
ORIGINAL = "_featuretap_original"


def is_a(value: object, kinds: type | tuple[Any, ...]) -> bool:
    """Say what ``isinstance`` says of an object that does not pass for another.

    >>> is_a(True, int), is_a("1", (int, float))
    (True, False)
    """
    return issubclass(type(value), kinds)


def has_attributes(value: object) -> bool:
    """Say whether ``value`` keeps attributes in a ``__dict__``."""
    # Those of a ``typing.TypeVar`` nobody can come to.
    kind: Any = type(value)
    return kind.__dictoffset__ != 0 and any("__dict__" in vars(base) for base in kind.__mro__)


def attributes_of(value: object) -> dict[str, Any]:
    """Return the ``__dict__`` of such an object."""
    attributes: dict[str, Any] = object.__getattribute__(value, "__dict__")
    return attributes


def original_of(value: Any) -> Any:
    """See through what stands in the place of a function while a forward is recorded, in any thread."""
    return vars(value).get(ORIGINAL, value) if type(value) is types.FunctionType else value
