"""Which call a frame is at, read off its bytecode: what is called, and with what."""

from __future__ import annotations

import builtins
import dis
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .remembering import by_code

__all__ = ["CALLS", "Called", "arguments_at", "called_at", "steps_around_calls"]

CALLS = frozenset("CALL CALL_KW CALL_METHOD CALL_FUNCTION CALL_FUNCTION_KW".split())
_ALL_CALLS = CALLS | {"CALL_FUNCTION_EX"}
_NO_STEPS = ("EXTENDED_ARG", "KW_NAMES")
# Between what is called and its first argument.
_EMPTY_PLACES = ("PUSH_NULL", "PRECALL")
# These load an attribute, and no variable.
_OF_AN_OBJECT = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


class Called(NamedTuple):
    """What a frame does just now.

    Attributes:
        instruction: its name.
        name: of what is called; ``""`` if nothing is, or what has no name: ``f(x)(y)``.
        value: what is called, if that is a variable.

    """

    instruction: str
    name: str
    value: Any = None

    @property
    def is_call(self) -> bool:
        """Whether anything is called."""
        return self.instruction in _ALL_CALLS


def called_at(frame: types.FrameType) -> Called:
    """Return what ``frame`` calls just now."""
    called, is_variable = _called(frame.f_code, frame.f_lasti)
    if is_variable:
        for space in (frame.f_locals, frame.f_globals, vars(builtins)):
            if called.name in space:
                return called._replace(value=space[called.name])
    return called


@by_code
def _called(code: types.CodeType, offset: int) -> tuple[Called, bool]:
    """Return what is called at ``offset``, and whether it is a variable."""
    found = steps_around_calls(code)
    at = next(n for n, step in enumerate(found) if step.offset >= offset)
    at += found[at].opname == "PRECALL"
    if found[at].opname not in _ALL_CALLS:
        return Called(found[at].opname, ""), False
    start = at - (found[at - 1].opname == "PRECALL")
    for arguments in arguments_at(found, at):
        start -= len(arguments)
    before = (step for step in reversed(found[:start]) if step.opname not in _EMPTY_PLACES)
    step = next(before, None)
    if step is None or not step.opname.startswith("LOAD_"):
        return Called(found[at].opname, ""), False
    return Called(found[at].opname, str(step.argval)), step.opname not in _OF_AN_OBJECT


def steps_around_calls(code: types.CodeType) -> list[dis.Instruction]:
    """Return the instructions of ``code``, without those that do nothing."""
    return [step for step in dis.get_instructions(code) if step.opname not in _NO_STEPS]


def arguments_at(code: Sequence[dis.Instruction], at: int) -> Iterator[Sequence[dis.Instruction]]:
    """Yield the instructions that put each argument of the call at ``at`` on the stack, the last first.

    Args:
        code: as :func:`steps_around_calls` returns it.
        at: the place of the call in it.

    """
    end = at - (code[at - 1].opname == "PRECALL")
    missing = 0
    for _ in range(_places(code[at])):
        # An instruction of Python 3.13 and later loads two variables, and so the argument before as well.
        start, missing = end, missing + 1
        while start > 0 and (missing > 0 or _ends_in(code, start, end)):
            start -= 1
            # Past a jump, the value is the one that is put there: ``a if c else b``.
            jumps = missing == 0 and dis.stack_effect(*_of(code[start]), jump=False) == 0
            missing += 1 if jumps else -dis.stack_effect(*_of(code[start]), jump=False)
        yield code[start:end]
        end = start


def _places(call: dis.Instruction) -> int:
    if call.opname == "CALL_FUNCTION_EX":
        return 1 + ((call.arg or 0) & 1)
    return (call.arg or 0) + call.opname.endswith("KW")


def _of(step: dis.Instruction) -> tuple[int, int | None]:
    return step.opcode, step.arg


def _ends_in(code: Sequence[dis.Instruction], start: int, end: int) -> bool:
    """Say whether a jump into the value between ``start`` and ``end``, or past it, is before it."""
    # ``a or b`` of Python 3.12 and later lets go of ``a`` first.
    before = start - 1 - (code[start - 1].opname == "POP_TOP")
    if before < 0 or start == end or "JUMP" not in code[before].opname:
        return False
    after = code[end].offset if end < len(code) else 0
    return code[start].offset <= int(code[before].argval) <= after
