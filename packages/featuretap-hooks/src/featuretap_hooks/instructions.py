"""The bytecode around a place where a frame is, as far as Python does not tell what it does."""

from __future__ import annotations

import dis
import types

from featuretap.reading import by_code

__all__ = ["compares", "formats_next"]


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
