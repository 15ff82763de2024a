"""Whether code of the user's own, in a node whose result is not needed, may do something besides.

It is read, and not run; what it says is taken generously: what it writes, fills or sets may be anybody's,
unless it made that itself.
"""

from __future__ import annotations

import dis
import itertools
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from .. import _compat
from .reading import (
    CHANGES_CONTAINERS,
    CachedFunction,
    Forward,
    Step,
    forward_of,
    instructions_of,
    names_in,
    steps_of,
)
from .remembering import by_forward

__all__ = [
    "fills_what_it_is_given",
    "is_of_a_library",
    "is_plain_cache",
    "may_leave_trace",
    "may_write",
    "names_if_it_writes",
]


_SETS = frozenset("STORE_GLOBAL DELETE_GLOBAL STORE_DEREF DELETE_DEREF".split())
# Without those that are functions of tensors, too.
_FILLS = CHANGES_CONTAINERS - {"add", "sort"}
_MAKES = frozenset("BUILD_LIST BUILD_MAP BUILD_SET".split())
_LIBRARIES = frozenset(
    "torch torchvision featuretap featuretap_hooks math builtins operator _operator".split()
)


def may_leave_trace(node: nn.Module | Callable[..., Any]) -> bool:
    """Say whether a call of a module itself, or of a function, may change something or draw numbers."""
    if isinstance(node, nn.Module) and (node._forward_hooks or node._forward_pre_hooks):
        return True
    forward = _forward(node)
    return forward is not None and (not _is_read(forward) or _may(forward))


def fills_what_it_is_given(node: nn.Module | Callable[..., Any]) -> bool:
    """Say whether a module or function may put something into a container among its arguments."""
    forward = _forward(node)
    if forward is None or not _is_read(forward):
        return False
    return any(instruction.is_variable for instruction in _filled(forward))


def _forward(node: nn.Module | Callable[..., Any]) -> Forward | None:
    """Return the code of a node; ``None`` if it is of a library whose effects are known."""
    if is_of_a_library(type(node) if isinstance(node, nn.Module) else node):
        return None
    return forward_of(node) if isinstance(node, nn.Module) else Forward(object, node)


def is_of_a_library(owner: Any) -> bool:
    """Say whether a function, or the class of a module, is of a library whose effects are known."""
    return _is_librarys(getattr(owner, "__module__", ""))


@lru_cache(maxsize=1024)
def _is_librarys(name: str | None) -> bool:
    return str(name).partition(".")[0] in _LIBRARIES


def _is_read(forward: Forward) -> bool:
    return isinstance(forward.function, types.FunctionType)


def names_if_it_writes(module: nn.Module) -> frozenset[str] | None:
    """Return the names that the code of ``module`` mentions if it may write tensors, else ``None``."""
    forward = _forward(module)
    return None if forward is None or not may_write(forward) else names_in(forward)


def is_plain_cache(function: Any) -> bool:
    """Say whether ``function`` is of ``functools.cache``, and what it keeps is made of its arguments alone.

    What it draws, or reads off a module, would be another thing the next time.
    """
    kept = getattr(function, "__wrapped__", None)
    if not isinstance(function, CachedFunction) or not isinstance(kept, types.FunctionType):
        return False
    parameters = kept.__code__.co_varnames[: kept.__code__.co_argcount]
    steps = list(steps_of(dis.get_instructions(kept)))
    reads = any(
        before.is_variable and before.argument in parameters and "ATTR" in after.name
        for before, after in itertools.pairwise(steps)
    )
    return not reads and not may_leave_trace(kept)


@by_forward
def may_write(forward: Forward) -> bool:
    """Say whether code that can be read may write tensors, or containers that it has not made."""
    if not _is_read(forward):
        return False
    names = names_in(forward)
    if any(i.is_in_place for i in _code(forward)) or _filled(forward):
        return True
    return "out" in names or any(n.endswith("_") and not n.endswith("__") for n in names)


@by_forward
def _may(forward: Forward) -> bool:
    code, names = _code(forward), names_in(forward)
    if any(i.sets_attribute or i.name in _SETS for i in code) or may_write(forward):
        return True
    draws = (name for name in names if "dropout" not in name)
    return any(map(_compat.draws_random_numbers, draws)) or (
        # With the flag of the module it does nothing in eval mode, and in train mode nobody asks.
        "training" not in names and any(map(_is_dropout, (None, *code), code))
    )


@by_forward
def _code(forward: Forward) -> tuple[Step, ...]:
    return tuple(steps_of(instructions_of(forward)))


@by_forward
def _filled(forward: Forward) -> tuple[Step, ...]:
    """Return what loads each container that is filled and was not made here."""
    code = _code(forward)
    made = {
        after.argument
        for before, after in itertools.pairwise(code)
        if before.name in _MAKES and after.name == "STORE_FAST"
    }
    places = [
        place - (2 if instruction.sets_item else 1)
        for place, instruction in enumerate(code)
        if instruction.sets_item
        or (instruction.argument in _FILLS and "FAST" not in instruction.name)
    ]
    return tuple(code[place] for place in places if code[place].argument not in made)


def _is_dropout(before: Step | None, instruction: Step) -> bool:
    """Say whether a function is meant, and not a module of this name."""
    if not isinstance(instruction.argument, str) or "dropout" not in instruction.argument:
        return False
    if before is None or instruction.name == "LOAD_GLOBAL":
        return instruction.name == "LOAD_GLOBAL"
    return before.name == "LOAD_GLOBAL" or before.argument == "functional"
