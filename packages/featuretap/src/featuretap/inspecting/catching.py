"""Whether code would go on if what it calls raised, as real tensors may and stand-ins do not.

It is read off the bytecode: off the table of handlers that Python has since 3.11; before, a handler was
set up by an instruction, and is taken to stand for all that lies between that and itself.
"""

from __future__ import annotations

import dis
import types
from typing import Any, NamedTuple

from torch import nn

from .reading import (
    Forward,
    forward_of,
    instructions_of,
    kinds_of,
    names_in,
    steps_of,
)
from .remembering import MOST_CODES, by_code
from .whose import is_users, runs_users_code

__all__ = ["catches", "catches_in_exit", "enters", "is_caught"]

_ENDS = frozenset("RETURN_VALUE RETURN_CONST".split())
_RAISES = frozenset("RERAISE RAISE_VARARGS".split())
_JUMPS = frozenset("JUMP_FORWARD JUMP_BACKWARD JUMP_ABSOLUTE JUMP_BACKWARD_NO_INTERRUPT".split())
_SETUPS = frozenset({"SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"})
# Newer Pythons look the methods of a manager up one by one.
_ENTERS = frozenset({"BEFORE_WITH", *_SETUPS})
_WITH = "WITH_EXCEPT_START"


class _Protected(NamedTuple):
    """Instructions, by their offsets, and where the handler of what they raise begins."""

    start: int
    end: int
    handler: int


def is_caught(frame: types.FrameType | None, forward: Any, end: types.CodeType) -> bool:
    """Say whether code of the model would go on if what it runs in ``frame`` raised.

    Args:
        frame: where to begin; those that called it are looked at, too.
        forward: the code of the forward that runs. Whether that catches was asked before it ran.
        end: the code that looks into a module. The frames around it were looked at when that module
            was called.

    """
    while frame is not None:
        code = frame.f_code
        if code is forward or code is end:
            return False
        # Asked of each frame at each node of a trace, and nearly all catch nothing.
        if id(code) not in _CATCH_NOTHING and _is_caught_in(frame):
            return True
        frame = frame.f_back
    return False


def _is_caught_in(frame: types.FrameType) -> bool:
    code = frame.f_code
    if catches(code):
        return runs_users_code(frame) and _catches_at(code, frame.f_lasti)
    if len(_CATCH_NOTHING) >= MOST_CODES:
        _CATCH_NOTHING.clear()
    _CATCH_NOTHING[id(code)] = code
    return False


# By ``id``; the code is kept, so that no other gets its id.
_CATCH_NOTHING: dict[int, types.CodeType] = {}


def catches_in_exit(module: nn.Module) -> bool:
    """Say whether the forward of ``module`` enters something of the user's that may swallow exceptions.

    Asked are attributes of the module and classes that the forward names.
    """
    forward = forward_of(module)
    names = names_in(forward)
    own = (type(value) for name, value in list(vars(module).items()) if name in names)
    kinds = {*kinds_of(forward), *own}
    return any(is_users(kind) and _swallows(getattr(kind, "__exit__", None)) for kind in kinds)


def enters(forward: Forward) -> bool:
    """Say whether ``forward``, or what it calls by name, enters a context manager."""
    return any(i.opname in _ENTERS or i.argval == "__exit__" for i in instructions_of(forward))


def _swallows(leave: Any) -> bool:
    return isinstance(leave, types.FunctionType) and _returns_truth(leave.__code__)


@by_code
def _returns_truth(code: types.CodeType) -> bool:
    """Say whether ``__exit__`` returns something else than nothing, and than what another one returns."""
    steps = list(steps_of(dis.get_instructions(code)))
    if any(step.name == "RETURN_CONST" and step.argument for step in steps):
        return True
    returned = [steps[n - 1] for n, step in enumerate(steps) if step.name == "RETURN_VALUE"]
    passes_on = "__exit__" in code.co_names
    return not all(
        not step.argument if step.name == "LOAD_CONST" else passes_on and "CALL" in step.name
        for step in returned
    )


@by_code
def catches(code: types.CodeType) -> bool:
    """Say whether some handler of ``code`` goes on: it does not raise again, whatever came."""
    return any(_goes_on(code, found.handler) for found in _table(code))


@by_code
def _catches_at(code: types.CodeType, offset: int) -> bool:
    """Say the same of what is raised at ``offset``."""
    handler = _handler_of(code, offset)
    return handler is not None and _goes_on(code, handler)


@by_code
def _table(code: types.CodeType) -> tuple[_Protected, ...]:
    entries = getattr(dis.Bytecode(code), "exception_entries", None)
    if entries is not None:
        return tuple(_Protected(entry.start, entry.end, entry.target) for entry in entries)
    return tuple(
        _Protected(i.offset, i.argval, i.argval)
        for i in dis.get_instructions(code)
        if i.opname in _SETUPS
    )


def _handler_of(code: types.CodeType, offset: int) -> int | None:
    inside = [found for found in _table(code) if found.start <= offset < found.end]
    return min(inside, key=lambda found: found.end - found.start).handler if inside else None


def _goes_on(code: types.CodeType, handler: int) -> bool:
    """Follow a handler, and those of what it raises again, to where the exception is over."""
    instructions = list(dis.get_instructions(code))
    at = {instruction.offset: number for number, instruction in enumerate(instructions)}
    waiting, seen = [at[handler]], set[int]()
    while waiting:
        number = waiting.pop()
        if number in seen or number >= len(instructions):
            continue
        seen.add(number)
        found = instructions[number]
        name = found.opname
        if name == "POP_EXCEPT" and instructions[number + 1].opname not in _RAISES:
            return True
        if name in _RAISES:
            outer = _handler_of(code, found.offset)
            if outer is not None:
                waiting.append(at[outer])
        elif name == _WITH:
            # Whether a manager swallows the exception is asked where it is entered.
            while not instructions[number].opname.startswith("POP_JUMP"):
                number += 1
            waiting.append(number + 1)
        elif name not in _ENDS:
            is_jump = found.opcode in dis.hasjrel or found.opcode in dis.hasjabs
            if is_jump and name not in _SETUPS:
                waiting.append(at[found.argval])
            if name not in _JUMPS:
                waiting.append(number + 1)
    return False
