"""What one function mentions and sets, read off its bytecode."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from featuretap.inspecting.reading import Step, codes_in, steps_of
from featuretap.inspecting.remembering import by_code

__all__ = ["Facts", "facts_of"]


class Facts(NamedTuple):
    """What is known of one function.

    Attributes:
        names: that its code mentions.
        sets_own: whether it sets something on its first argument.
        sets_other: whether it sets something on any other object.
        fills: whether it puts something into a container, or takes something out.
        sets: the names of the attributes that it sets.
        sets_back: whether it sets one of them twice.
        sets_other_back: whether that may be one of another object.
        in_place: whether it writes in place.
        sets_outside: whether it sets a global, or a variable of a function around it.

    """

    names: frozenset[str]
    sets_own: bool
    sets_other: bool
    fills: bool
    sets: frozenset[str]
    sets_back: bool
    sets_other_back: bool
    in_place: bool
    sets_outside: bool


@by_code
def facts_of(code: types.CodeType) -> Facts:
    """Read the code of a function."""
    own = code.co_varnames[0] if code.co_argcount else ""
    names: set[str] = set()
    targets: list[str] = []
    set_on: list[tuple[str, str]] = []
    in_place = sets_outside = False
    for part in codes_in(code):
        steps = list(steps_of(dis.get_instructions(part)))
        names.update(part.co_names)
        targets += _targets(steps)
        set_on += _roots(steps)
        in_place |= any(step.is_in_place or step.sets_item for step in steps)
        in_place |= any("out" in names for names in part.co_consts if type(names) is tuple)
        sets_outside |= any(step.name in _SETS_OUTSIDE for step in steps)
    sets = [name for _, name in set_on]
    return Facts(
        frozenset(names),
        own != "" and own in targets,
        any(target not in (own, _ITEM) for target in targets),
        _ITEM in targets,
        frozenset(sets),
        len(set(sets)) < len(sets),
        any(root != own and sets.count(name) > 1 for root, name in set_on),
        in_place,
        sets_outside,
    )


_ITEM = "[]"
_SETS_OUTSIDE = frozenset("STORE_GLOBAL DELETE_GLOBAL STORE_DEREF DELETE_DEREF".split())


def _targets(steps: Iterable[Step]) -> Iterator[str]:
    """Yield the name of each variable that something is set on; ``""`` for any other object.

    What is put into a container, or taken out, is ``_ITEM``.
    """
    loaded = ""
    for step in steps:
        if step.sets_attribute:
            yield loaded
        elif step.sets_item:
            yield _ITEM
        is_variable = step.is_variable or step.name == "LOAD_DEREF"
        loaded = step.argument if is_variable else ""


def _roots(steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """Yield each attribute that is set, after the variable that its owner hangs on: ``self.a.b = ...``."""
    root = ""
    for step in steps:
        if step.sets_attribute:
            yield root, str(step.argument)
        if step.name != "LOAD_ATTR":
            is_variable = step.is_variable or step.name == "LOAD_DEREF"
            root = step.argument if is_variable else ""
