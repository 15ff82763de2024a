"""Where a forward makes a text of a value that a trace does not know, and what it does with it.

A text that is printed, logged or put into an error is for people, and may say anything. So may the key
of a cache that the forward fills itself where it does not find it: no stand-in's text is found. Any other
may be compared, and the answer would hold for every call.
"""

from __future__ import annotations

import dis
import itertools
import types

from ..inspecting.reading import Step, steps_of
from ..inspecting.remembering import by_code
from ..inspecting.whose import is_ours

__all__ = ["TEXT", "makes_a_text"]

TEXT = "the forward makes a text of a value, a size or a dtype, and uses it"

_FOR_PEOPLE = frozenset({"logging", "warnings", "traceback"})
_TELLS = frozenset(
    "print warn _assert debug info warning error critical exception log write".split()
)
_IGNORED = frozenset("PRECALL EXTENDED_ARG NOT_TAKEN PUSH_NULL KW_NAMES RESUME".split())
_PASSES_ON = ("LOAD_", "FORMAT_", "CONVERT_VALUE", "BUILD_", "BINARY_", "CALL")
_KEYS = frozenset({"CONTAINS_OP", "STORE_SUBSCR", "BINARY_SUBSCR"})
_ENDS = ("STORE_", "POP_TOP", "POP_JUMP", "JUMP", "FOR_ITER")


def makes_a_text(frame: types.FrameType | None) -> bool:
    """Say whether code that is not torch's makes a text just now, and may use it for more than that.

    Args:
        frame: where the text is made.

    """
    while frame is not None and is_ours(frame.f_globals):
        frame = frame.f_back
    if frame is None or str(frame.f_globals.get("__name__")).partition(".")[0] in _FOR_PEOPLE:
        return False
    return not _is_harmless(frame.f_code, frame.f_lasti)


@by_code
def _is_harmless(code: types.CodeType, offset: int) -> bool:
    """Say whether what is made at ``offset`` is told to people, or is the key of a cache."""
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _IGNORED]
    here = next(n for n, found in enumerate(instructions) if found.offset >= offset)
    steps = steps_of(instructions[here + 1 :])
    end = next(itertools.dropwhile(lambda step: step.name.startswith(_PASSES_ON), steps), None)
    if end is None or end.name == "RAISE_VARARGS":
        return end is not None
    if end.name == "STORE_FAST":
        return _is_key(str(end.argument), list(steps_of(instructions)))
    before = reversed(list(steps_of(instructions[:here])))
    statement = itertools.takewhile(lambda step: not step.name.startswith(_ENDS), before)
    return end.name == "POP_TOP" and any(step.argument in _TELLS for step in statement)


def _is_key(variable: str, steps: list[Step]) -> bool:
    """Say whether a variable is used only to look into a container, and to fill it."""
    uses = {
        next((s.name for s in steps[n + 1 :] if not s.name.startswith("LOAD_")), "")
        for n, step in enumerate(steps)
        if step.is_variable and step.argument == variable
    }
    return "STORE_SUBSCR" in uses and uses <= _KEYS
