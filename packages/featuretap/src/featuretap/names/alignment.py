"""Which operation of one mode is which of the other, where both run in the same scope."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeAlias

from ..messages import warn

__all__ = ["Alignment", "Operations", "warn_of_two_operations"]

#: Scope -> name of each operation in it, in execution order -> what alike operations share.
Operations: TypeAlias = Mapping[str, Mapping[str, Hashable]]
_Items: TypeAlias = Sequence[tuple[str, Hashable]]


class Alignment:
    """The operations of two modes, aligned scope by scope.

    Operations are counted in their scope, so one that runs in one mode only shifts the counters of those
    behind it.

    >>> train = {"": {"x": "x", "rand": "rand", "add": "add", "add_1": "add"}}
    >>> alignment = Alignment(train, {"": {"x": "x", "add": "add", "add_1": "add"}})
    >>> alignment.agrees("", "add"), Alignment(train, {"": {"x": "x", "add": "mul"}}).agrees("", "add")
    (True, False)

    """

    def __init__(self, first: Operations, second: Operations) -> None:
        self._first = first
        self._second = second
        # Each scope is aligned once, however many of its names are asked for.
        self._same: dict[str, set[str]] = {}

    def agrees(self, scope: str, name: str) -> bool:
        """Say whether ``name`` is the same operation of ``scope`` in both."""
        if scope not in self._same:
            first, second = self._first.get(scope, {}), self._second.get(scope, {})
            self._same[scope] = set(_same(first, second))
        return name in self._same[scope]


def _same(first: Mapping[str, Hashable], second: Mapping[str, Hashable]) -> Iterator[str]:
    a, b = list(first.items()), list(second.items())
    # What is alike at either end is set aside: the search for matches can take quadratic time.
    for ends in (slice(None), slice(None, None, -1)):
        size = _alike(a[ends], b[ends])
        yield from _same_names(a[ends][:size], b[ends][:size])
        a, b = a[ends][size:][ends], b[ends][size:][ends]
    first_alike, second_alike = [alike for _, alike in a], [alike for _, alike in b]
    matcher = difflib.SequenceMatcher(None, first_alike, second_alike, autojunk=False)
    for match in matcher.get_matching_blocks():
        yield from _same_names(a[match.a : match.a + match.size], b[match.b : match.b + match.size])


def _alike(a: _Items, b: _Items) -> int:
    """Return how many operations are alike at the beginning."""
    pairs = itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], zip(a, b, strict=False))
    return sum(1 for _ in pairs)


def _same_names(a: _Items, b: _Items) -> Iterator[str]:
    yield from (name for (name, _), (other, _) in zip(a, b, strict=True) if name == other)


def warn_of_two_operations(name: str) -> None:
    """Warn that ``name`` is not the same in both modes."""
    warn(
        f"{name!r} is one operation in train mode but another in eval mode, because they are "
        "counted apart; pass train_return_nodes and eval_return_nodes to say which you mean"
    )
