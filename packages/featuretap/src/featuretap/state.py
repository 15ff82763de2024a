"""Whether what a forward changed is state: something that its next call would read.

Read off the bytecode of the forward itself; nothing is run.
"""

from __future__ import annotations

import dis
import types
from collections import deque
from typing import Any

import torch
from torch import fx

from .held import items_of

__all__ = ["is_of_this_call", "is_state", "only_fills", "was_filled"]

_NUMBERS = frozenset({bool, int, float, str})
_FILL = frozenset({"append", "appendleft", "extend"})


def is_state(code: types.CodeType | None, name: str, before: Any, now: Any) -> bool:
    """Say whether an attribute that was set to something else carries it to the next call.

    Args:
        code: of the forward; ``None`` if there is none to look at.
        name: of the attribute.
        before: its value before the forward ran.
        now: its value afterwards.

    """
    if isinstance(now, (torch.Tensor, fx.Proxy)):
        return code is None or any(_loads(i, name) for i in dis.get_instructions(code))
    is_counted = type(before) in _NUMBERS and type(now) in _NUMBERS and before != now
    return is_counted and _reads_before_setting(code, name)


def was_filled(container: Any, before: Any) -> bool:
    """Say whether something of this call was put into a container, or a sequence got another length.

    What is made of parameters alone is the same in the next call: a cache of that is no state.
    """
    if isinstance(container, (list, deque)) and len(container) != len(before):
        return True
    return bool(container) and any(map(is_of_this_call, items_of(container)))


def is_of_this_call(value: Any) -> bool:
    """Say whether ``value`` is a stand-in for something that depends on the arguments of the call."""
    waiting = [value.node] if isinstance(value, fx.Proxy) else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        waiting += [found for found in node.all_input_nodes if found not in seen]
        seen.update(waiting)
    return False


def only_fills(code: types.CodeType | None, name: str) -> bool:
    """Say whether all that ``code`` does with the attribute ``name`` is to put something into it.

    That is ``self.log.append(x)``, or ``self.seen["key"] = x``.
    """
    instructions = list(dis.get_instructions(code)) if code is not None else []
    uses = [index for index, found in enumerate(instructions) if _loads(found, name)]
    return bool(uses) and all(_is_filled(instructions[index + 1 : index + 3]) for index in uses)


def _is_filled(following: list[dis.Instruction]) -> bool:
    key, store = [*following, None, None][:2]
    if key is None or store is None:
        return False
    if key.argval in _FILL and ("METHOD" in key.opname or "ATTR" in key.opname):
        return True
    return key.opname.startswith("LOAD_") and store.opname == "STORE_SUBSCR"


def _loads(instruction: dis.Instruction, name: str) -> bool:
    is_attribute = "ATTR" in instruction.opname or "METHOD" in instruction.opname
    is_set = instruction.opname.startswith(("STORE", "DELETE"))
    return is_attribute and instruction.argval == name and not is_set


def _reads_before_setting(code: types.CodeType | None, name: str) -> bool:
    """Say whether ``code`` reads the attribute where it has not set it: ``self.n += 1``."""
    for instruction in dis.get_instructions(code) if code is not None else ():
        if instruction.argval == name and "ATTR" in instruction.opname:
            return _loads(instruction, name)
    return False
