"""Where a forward asks ``is``: of a stand-in, the answer is always the same, and may be wrong.

No stand-in is ``None``, ``True`` or ``torch.float32``, and nothing in Python lets it say otherwise. So
the code that receives a value of uncertain kind is read: does it ask this of the value next, or of
the variable that it stores the value in?
"""

from __future__ import annotations

import dis
import functools
import operator
import sys
import types
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from .likeness import kind_of
from .reading import Forward, by_code, instructions_of

__all__ = ["asks_identity", "is_asked_of_next", "may_ask_identity"]

# Frames of these pass on what their caller asked for.
_PASSING = ("torch.fx", "featuretap", "torch.nn.modules.module", "torch.overrides", "torch._")
# What may stand between a value and ``is``: the other side of the comparison.
_OTHER_SIDE = ("LOAD_CONST", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_FAST", "LOAD_DEREF", "CACHE")
_REACH = 6


@functools.lru_cache(maxsize=4096)
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
    return frame is not None and _asks(frame.f_code, frame.f_lasti, index)


def is_asked_of_next(frame: types.FrameType, *, may_be_none: bool) -> bool:
    """Say whether ``is`` is asked of the value that ``frame`` gets just now.

    Of a value that is never ``None``, ``is None`` does not count: the answer is the right one.
    """
    code, offset = frame.f_code, frame.f_lasti
    return _asks(code, offset, None) and (may_be_none or not _asks_for_none(code, offset))


@by_code
def _asks_for_none(code: types.CodeType, offset: int) -> bool:
    """Say whether the value is compared with ``None`` at once."""
    first, second, *_ = [i for i in _instructions(code) if i.offset > offset] + [None, None]
    if first is not None and _compares(first):
        return first.opname.endswith("NONE")
    return (
        first is not None
        and second is not None
        and first.opname == "LOAD_CONST"
        and first.argval is None
        and second.opname == "IS_OP"
    )


@by_code
def _asks(code: types.CodeType, offset: int, item: int | None) -> bool:
    instructions = _instructions(code)
    here = next(n for n, found in enumerate(instructions) if found.offset >= offset)
    following = instructions[here + 1 :]
    if instructions[here].opname == "UNPACK_SEQUENCE":
        names = list(_stored(following[: instructions[here].argval]))
        return item is not None and item < len(names) and names[item] in _tested(code)
    for found in following[:_REACH]:
        if _compares(found):
            return True
        if found.opname.startswith("STORE_FAST"):
            return next(_stored([found])) in _tested(code)
        if not found.opname.startswith(_OTHER_SIDE):
            return False
    return False


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    ignored = ("CACHE", "PRECALL", "EXTENDED_ARG", "NOT_TAKEN", "COPY")
    return [found for found in dis.get_instructions(code) if found.opname not in ignored]


def _compares(instruction: dis.Instruction) -> bool:
    operation = instruction.opname
    return operation == "IS_OP" or ("JUMP" in operation and operation.endswith("NONE"))


@by_code
def _tested(code: types.CodeType) -> frozenset[str]:
    """Return the variables of which ``is`` is asked."""
    instructions = _instructions(code)
    return frozenset(
        name
        for n, found in enumerate(instructions)
        if _compares(found)
        for before in instructions[max(n - 2, 0) : n]
        if before.opname.startswith("LOAD_FAST")
        for name in _names(before)
    )


def _stored(instructions: Sequence[dis.Instruction]) -> Iterator[str]:
    for found in instructions:
        yield from _names(found) if found.opname.startswith("STORE_FAST") else ("",)


def _names(instruction: dis.Instruction) -> tuple[str, ...]:
    # Newer Pythons load or store two variables in one instruction.
    value = instruction.argval
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)
