"""Where a forward compares what it was given, and the answer may be wrong, now or later.

No stand-in is ``None``, ``True`` or ``torch.float32``, and nothing in Python lets it say otherwise: of one,
``is`` gives the same answer always. A dtype that was read off a buffer says to nobody that it is compared.
So the code that receives such a value is read: does it compare the value next, or the variable that it
stores the value in?
"""

from __future__ import annotations

import dis
import itertools
import operator
import sys
import types
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx, nn

from ..inspecting.reading import Forward, instructions_of
from ..inspecting.remembering import by_code, by_forward
from .likeness import kind_of

__all__ = ["asks_identity", "is_asked_of_next", "is_compared_next", "may_ask_identity"]

# Frames of these pass on what their caller asked for.
_PASSING = ("torch.fx", "featuretap", "torch.nn.modules.module", "torch.overrides", "torch._")
# What may stand between a value and the comparison: its other side.
_OTHER_SIDE = (
    "LOAD_CONST",
    "LOAD_GLOBAL",
    "LOAD_ATTR",
    "LOAD_FAST",
    "LOAD_DEREF",
    "BUILD_",
)
_REACH = 6
_IDENTITY = frozenset({"IS_OP"})
_ALL = _IDENTITY | {"COMPARE_OP", "CONTAINS_OP"}
# Each dtype of a tuple takes two instructions.
_REACH_OF_ALL = 12


@by_forward
def may_ask_identity(forward: Forward) -> bool:
    """Say whether a forward, or what it calls by name, compares anything with ``is``."""
    return any(map(_compares, instructions_of(forward)))


def asks_identity(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Say whether the code that made ``node`` asks ``is`` of a value that may be ``None`` or a constant.

    Args:
        node: the node of the value, just made.
        modules: the modules by their paths.

    """
    if node.op == "output" or kind_of(node, modules) in (torch.Tensor, nn.Parameter):
        return False
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_PASSING):
        frame = frame.f_back
    item = node.args[1] if node.target is operator.getitem else None
    index = item if isinstance(item, int) else None
    return frame is not None and _asks(frame.f_code, frame.f_lasti, index, _IDENTITY, False)


def is_asked_of_next(frame: types.FrameType, *, may_be_none: bool) -> bool:
    """Say whether ``is`` is asked of the value that ``frame`` gets just now.

    Of a value that is never ``None``, ``is None`` does not count: the answer is the right one.
    """
    return _asks(frame.f_code, frame.f_lasti, None, _IDENTITY, not may_be_none)


def is_compared_next(frame: types.FrameType) -> bool:
    """Say whether the value that ``frame`` gets just now is compared with another than ``None``."""
    return _asks(frame.f_code, frame.f_lasti, None, _ALL, True)


@by_code
def _asks(
    code: types.CodeType, offset: int, item: int | None, by: frozenset[str], but_none: bool
) -> bool:
    instructions = _instructions(code)
    here = next(n for n, found in enumerate(instructions) if found.offset >= offset)
    following = instructions[here + 1 :]
    if instructions[here].opname == "UNPACK_SEQUENCE":
        names = list(_stored(following[: instructions[here].argval]))
        return item is not None and item < len(names) and names[item] in _tested(code, by, but_none)
    for n, found in enumerate(following[: _REACH if by is _IDENTITY else _REACH_OF_ALL]):
        if _compares(found, by):
            return not (but_none and _is_with_none(found, following[:n]))
        if found.opname.startswith("STORE_FAST"):
            return next(_stored([found])) in _tested(code, by, but_none)
        if not found.opname.startswith(_OTHER_SIDE):
            return False
    return False


def _is_with_none(comparison: dis.Instruction, before: list[dis.Instruction]) -> bool:
    """Say whether ``None`` itself is a side of a comparison, given what runs before it."""
    if comparison.opname == "CONTAINS_OP":
        return False
    is_none = (i.opname == "LOAD_CONST" and i.argval is None for i in _last_two(before))
    return comparison.opname.endswith("NONE") or any(is_none)


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    ignored = ("PRECALL", "EXTENDED_ARG", "NOT_TAKEN", "COPY")
    return [found for found in dis.get_instructions(code) if found.opname not in ignored]


def _compares(instruction: dis.Instruction, by: frozenset[str] = _IDENTITY) -> bool:
    operation = instruction.opname
    is_jump = by is _IDENTITY and "JUMP" in operation and operation.endswith("NONE")
    return operation in by or is_jump


@by_code
def _tested(code: types.CodeType, by: frozenset[str], but_none: bool) -> frozenset[str]:
    """Return the variables that are compared ``by`` one of these instructions."""
    instructions = _instructions(code)
    names: set[str] = set()
    for n, comparison in enumerate(instructions):
        before = instructions[max(n - _REACH_OF_ALL, 0) : n]
        if _compares(comparison, by) and not (but_none and _is_with_none(comparison, before)):
            sides = _sides(before, by)
            loads = (side for side in sides if side.opname.startswith("LOAD_FAST"))
            names.update(name for load in loads for name in _names(load))
    return frozenset(names)


def _sides(before: list[dis.Instruction], by: frozenset[str]) -> Iterable[dis.Instruction]:
    """Return what may load the sides of a comparison, given what runs before it."""
    if by is _IDENTITY:
        return [found for found in _last_two(before) if not found.opname.startswith("LOAD_ATTR")]
    return itertools.takewhile(lambda i: i.opname.startswith(_OTHER_SIDE), reversed(before))


def _last_two(before: list[dis.Instruction]) -> Iterator[dis.Instruction]:
    """Yield the last instruction of each of two values, of which ``torch.strided`` takes two."""
    at = len(before) - 1
    for _ in range(2):
        if at < 0:
            return
        yield before[at]
        while at > 0 and before[at].opname.startswith("LOAD_ATTR"):
            at -= 1
        at -= 1


def _stored(instructions: Sequence[dis.Instruction]) -> Iterator[str]:
    for found in instructions:
        yield from _names(found) if found.opname.startswith("STORE_FAST") else ("",)


def _names(instruction: dis.Instruction) -> tuple[str, ...]:
    # Newer Pythons load or store two variables in one instruction.
    value = instruction.argval
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)
