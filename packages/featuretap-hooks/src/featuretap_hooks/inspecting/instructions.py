"""The bytecode around a place where a frame is, as far as Python does not tell what it does."""

from __future__ import annotations

import dis
import os
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from featuretap.inspecting.calls_in_code import CALLS, arguments_at, steps_around_calls
from featuretap.inspecting.remembering import by_code
from featuretap.inspecting.whose import is_ours

__all__ = ["compares", "formats_next", "is_bookkeeping", "spelled_out"]


def compares(frame: types.FrameType) -> bool:
    """Say whether ``frame`` compares just now: the look-up of a key in a dict is no comparison."""
    return _instructions(frame.f_code).get(frame.f_lasti, ("", ""))[0] == "COMPARE_OP"


def formats_next(frame: types.FrameType) -> bool:
    """Say whether what ``frame`` is at just now is put into a text next: ``f"{x.dtype}"``."""
    following = _instructions(frame.f_code).get(frame.f_lasti, ("", ""))[1]
    return following.startswith(("FORMAT_", "CONVERT_VALUE"))


@by_code
def _instructions(code: types.CodeType) -> dict[int, tuple[str, str]]:
    """Return the name of each instruction by its offset, and the name of the one after it."""
    found = list(dis.get_instructions(code))
    names = [dis.opname[code.co_code[instruction.offset]] for instruction in found]
    following = [*names[1:], ""]
    return {
        instruction.offset: pair
        for instruction, pair in zip(found, zip(names, following, strict=True), strict=True)
    }


def spelled_out(frame: types.FrameType) -> Iterator[Any]:
    """Yield what the arguments of the call that ``frame`` is at name outright: ``dtype=torch.float32``.

    Of a variable, as ``dtype=kind``, nobody can say where it is from.
    """
    caller: types.FrameType | None = frame
    while caller is not None and is_ours(caller.f_globals):
        caller = caller.f_back
    if caller is None:
        return
    for owner, name in _named_in_calls(caller.f_code).get(caller.f_lasti, ()):
        if not owner:
            yield caller.f_globals.get(name)
        elif isinstance(space := caller.f_globals.get(owner), types.ModuleType):
            yield vars(space).get(name)


@by_code
def _named_in_calls(code: types.CodeType) -> dict[int, list[tuple[str, str]]]:
    """Return the globals that the arguments of each call name, by its offset: owner and attribute.

    The owner is empty for a global itself.
    """
    found = steps_around_calls(code)
    return {
        instruction.offset: names
        for at, instruction in enumerate(found)
        if instruction.opname in CALLS
        if (names := [n for group in arguments_at(found, at) for n in _global_in(group)])
    }


def _global_in(steps: Sequence[dis.Instruction]) -> Iterator[tuple[str, str]]:
    """Yield what an argument names, if it is nothing but a global or an attribute of one."""
    names = [str(step.argval) for step in steps]
    if steps and steps[0].opname in ("LOAD_GLOBAL", "LOAD_NAME"):
        if len(steps) == 1:
            yield "", names[0]
        elif len(steps) == 2 and steps[1].opname == "LOAD_ATTR":
            yield names[0], names[1]


@by_code
def is_bookkeeping(code: types.CodeType) -> bool:
    """Say whether this is code of torch's that looks at tensors on its own behalf, for no model.

    It checks what ``torch.vmap`` was given, runs what AOTAutograd has compiled, or saves a tensor.
    """
    file = code.co_filename
    if file == torch._tensor.__file__:
        return code.co_name in _PICKLES
    return file in _SAVES or file.startswith(_FUNCTORCH)


_PICKLES = frozenset({"__reduce_ex__", "_reduce_ex_internal", "_typed_storage"})
_SAVES = (torch.serialization.__file__, torch.storage.__file__, torch._utils.__file__)
_FUNCTORCH = os.path.join(os.path.dirname(torch.__file__), "_functorch", "")
