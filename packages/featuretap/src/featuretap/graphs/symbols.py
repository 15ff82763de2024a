"""Operators as they are written in Python."""

from __future__ import annotations

import re

from ..naming import AUGMENTED, BINARY

__all__ = ["written_operator"]

# As they are written, for whoever watches the forward of an extractor knows them by that.
_OPERATORS = dict(
    zip(
        [*BINARY, *"eq ne lt le gt ge neg pos invert".split()],
        "+ - * / // % ** @ & | ^ << >> == != < <= > >= - + ~".split(),
        strict=True,
    )
)
_IN_PLACE = {augmented: f"{_OPERATORS[name]}=" for augmented, name in AUGMENTED.items()}
_OPERATORS |= _IN_PLACE


def written_operator(name: str, result: str, arguments: list[str]) -> str:
    """Write an operator with its symbol; ``""`` if it has none, or its result has the wrong name."""
    symbol = _OPERATORS.get(name, "")
    first, *second = (given if given.isidentifier() else f"({given})" for given in arguments)
    if not symbol or not second:
        return symbol and f"{result} = {symbol}{first}"
    if name not in _IN_PLACE:
        return f"{result} = {first} {symbol} {second[0]}"
    if result != first and re.search(rf"\b{result}\b", second[0]):
        return ""
    return f"{'' if result == first else f'{result} = {first}; '}{result} {symbol} {second[0]}"
