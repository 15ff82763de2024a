"""What forwards keep outside of the modules: compared, and put back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch

from ..inspecting.containers import (
    CONTAINERS,
    copied,
    is_changed,
    is_same,
    items_of,
    restore_container,
)
from ..inspecting.looking import is_a, original_of
from ..inspecting.reading import Forward
from ..inspecting.trace_left import is_plain_cache, may_write
from .held import DEPTH
from .outside_places import (
    HOLD_ITEMS,
    MISSING,
    STATELESS,
    Owner,
    Place,
    Root,
    owner_at,
    places_at,
    roots_of,
)
from .rewinders import Rewinder, copied_iterator, rewinder
from .state import moved_attribute, moved_content

__all__ = ["Outside", "Roots", "roots_that_keep", "tensors_outside"]

# Where the code of each forward begins to look.
Roots: TypeAlias = Mapping[Forward, Sequence[Root]]


class Outside:
    """What some forwards find outside of their modules, as it is when this object is made.

    Args:
        roots: where to look: all of the forwards, or those of :func:`roots_that_keep`.

    """

    def __init__(self, roots: Roots) -> None:
        found = {forward: list(_held_at(own, forward)) for forward, own in roots.items()}
        self._found = {forward: held for forward, held in found.items() if held}

    @classmethod
    def of(cls, forwards: Iterable[Forward]) -> Outside:
        """Look at everything that ``forwards`` may find."""
        return cls({forward: roots_of(forward) for forward in forwards})

    def __bool__(self) -> bool:
        return bool(self._found)

    def moved(self, forward: Forward, *, is_certain: bool = False) -> str:
        """Name what ``forward`` changed and its next call would read; ``""`` if there is nothing.

        Most iterators cannot be looked at. They count as moved, unless it must be certain.
        """
        for one in _each(self._found.get(forward, ())):
            if not (is_certain and one.is_iterator) and one.moved(forward):
                return one.place.label
        return ""

    def changes(self) -> Iterator[Any]:
        """Yield keys for what is not as it was."""
        yield from (one.place.label for one in self._all() if one.is_changed)

    @property
    def context_variables(self) -> set[Any]:
        """The keys for those of the places where a context variable is."""
        return {one.place.label for one in self._all() if is_a(one.value, ContextVar)}

    @property
    def may_have_moved(self) -> bool:
        """Whether something is not as it was; most iterators cannot be looked at."""
        return any(one.is_changed or one.is_iterator for one in self._all())

    def restore(self, only: Collection[Any] | None = None) -> None:
        """Put everything back, or what :meth:`changes` yields these keys for."""
        for one in self._all():
            if only is None or (one.place.label in only and one.is_changed):
                one.restore()

    def _all(self) -> Iterator[_Held]:
        return (one for found in self._found.values() for one in _each(found))


class _Held:
    """One place, and what lay there: ``value``."""

    def __init__(self, place: Place, value: Any) -> None:
        self.place = place
        self.value = value
        self._content: Any = None
        self._copy: Iterator[Any] | None = None
        self._rewinder: Rewinder | None = None
        # Most places are such: code may set them, and they hold nothing.
        if value is MISSING or is_a(value, STATELESS):
            return
        if is_a(value, CONTAINERS):
            self._content = copied(value)
        elif is_a(value, Iterator):
            self._copy = copied_iterator(value)
        else:
            self._rewinder = rewinder(value)

    @property
    def _now(self) -> Any:
        return original_of(self.place.read())

    @property
    def is_changed(self) -> bool:
        """Whether another object lies there, or it holds something else."""
        if not is_same(self._now, self.value):
            return True
        if self._content is not None:
            return is_changed(self.value, self._content)
        return self._rewinder is not None and self._rewinder.moved()

    @property
    def is_iterator(self) -> bool:
        """Whether what lies there moves when it is used."""
        return is_a(self.value, Iterator)

    def moved(self, forward: Forward) -> bool:
        place, value = self.place, self.value
        now = self._now
        if now is not value:
            before = None if value is MISSING else value
            return moved_attribute(forward, place.name, before, now)
        if self._content is not None:
            return moved_content(forward, place.name, value, self._content)
        # Most iterators cannot be looked at.
        return self.is_iterator or (
            self._rewinder is not None and self._rewinder.moved() and not is_plain_cache(value)
        )

    def restore(self) -> None:
        place, value = self.place, self.value
        if self._copy is not None:
            place.write(copied_iterator(self._copy))
        elif place.is_set and self._now is not value:
            place.write(value)
        if self._content is not None:
            restore_container(value, self._content)
        if self._rewinder is not None:
            self._rewinder.rewind()


def tensors_outside(forwards: Iterable[Forward]) -> Iterator[torch.Tensor]:
    """Yield the tensors that code of ``forwards`` finds outside of the modules, and may write."""
    for forward in filter(may_write, forwards):
        for root in roots_of(forward):
            for place in places_at(root, forward):
                if isinstance(place, Place):
                    yield from _tensors_in(place.read(), DEPTH)


def _tensors_in(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if is_a(value, torch.Tensor):
        yield value
    elif depth and is_a(value, HOLD_ITEMS):
        for item in items_of(value):
            yield from _tensors_in(item, depth - 1)


def roots_that_keep(forwards: Iterable[Forward]) -> Roots:
    """Return where there is something now that may change, to look there alone in each of many calls.

    Most of what code mentions are functions and classes.
    """
    found = {forward: list(_narrowed(roots_of(forward), forward)) for forward in forwards}
    return {forward: roots for forward, roots in found.items() if roots}


def _narrowed(roots: Iterable[Root], forward: Forward) -> Iterator[Root]:
    for root in roots:
        # A class does not go from where it is found, and is looked at without finding it again.
        owner = root if isinstance(root, Owner) or root.is_set else owner_at(root, forward)
        if isinstance(owner, Owner):
            keeping = [place.name for place in owner.places() if any(_held_at([place], forward))]
            if keeping or owner.set_names:
                yield owner._replace(names=frozenset(keeping))
        elif any(_held_at([root], forward)):
            yield root


def _held_at(roots: Iterable[Root], forward: Forward) -> Iterator[_Held | Owner]:
    for root in roots:
        # Nearly all are such, and are looked at in each call.
        if isinstance(root, Owner) and root.has_none:
            yield root
            continue
        for place in places_at(root, forward):
            if isinstance(place, Owner):
                yield place
                continue
            value = original_of(place.read())
            if place.is_set or not (value is MISSING or is_a(value, STATELESS)):
                yield _Held(place, value)


def _each(found: Iterable[_Held | Owner]) -> Iterator[_Held]:
    """Yield the places, and those that were empty and are not now."""
    for one in found:
        if isinstance(one, Owner):
            if one.has_none:
                continue
            yield from (_Held(place, MISSING) for place in one.places())
        else:
            yield one
