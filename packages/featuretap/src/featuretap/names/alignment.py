"""Which operation of one mode is which of the other, where both run in the same scope."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Sequence

from ..messages import warn

__all__ = ["aligned", "warn_of_two_operations"]


def aligned(first: Sequence[Hashable], second: Sequence[Hashable], at: int, other: int) -> bool:
    """Say whether item ``at`` of one sequence is item ``other`` of the other, when they are aligned.

    >>> aligned(["add", "mul"], ["rand", "add", "mul"], 0, 1)
    True

    """
    if list(first) == list(second):
        return at == other
    blocks = difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return any(
        block.a <= at < block.a + block.size and at - block.a == other - block.b for block in blocks
    )


def warn_of_two_operations(name: str) -> None:
    """Warn that ``name`` is not the same in both modes."""
    warn(
        f"{name!r} is one operation in train mode but another in eval mode, because they are "
        "counted apart; pass train_return_nodes and eval_return_nodes to say which you mean"
    )
