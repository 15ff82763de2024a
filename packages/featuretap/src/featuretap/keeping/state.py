"""Whether what a forward changed is state: something that its next call would read."""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx

from ..inspecting.containers import copied
from ..inspecting.looking import is_a
from ..inspecting.reading import Forward, instructions_of, steps_of
from ..inspecting.remembering import by_forward

__all__ = [
    "is_moved_by",
    "may_read",
    "moved_attribute",
    "moved_content",
    "moved_in_object",
    "sets_elsewhere",
]

_NUMBERS = frozenset({bool, int, float, complex, str})
_PLAIN = _NUMBERS | {type(None), torch.Size, torch.dtype, torch.device}
_FILL = frozenset({"append", "appendleft", "extend", "add"})
_COUNTING = ("LOAD_CONST", "LOAD_SMALL", "BINARY_OP", "INPLACE_", "SWAP", "ROT_")
_STORES = frozenset({"STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF"})
_MISSING = object()


def moved_attribute(
    forward: Forward, name: str, before: Any, now: Any, others: Collection[Forward] = ()
) -> bool:
    """Say whether an attribute that was set to something else carries it to the next call.

    Args:
        forward: what set it.
        name: of the attribute.
        before: its value before the forward ran; ``None`` if it had none.
        now: its value afterwards.
        others: the forwards of the model, which may look at it as well.

    """
    if _is_plain(before) and _is_plain(now):
        if before == now or _reads_first(forward, name) is False:
            return False
        is_seen = any(may_read(other, name) for other in others if other != forward)
        return is_seen or not _only_counts(forward, name)
    return bool(_reads_first(forward, name)) and not _is_on_device(name, now)


def moved_in_object(forward: Forward, name: str, before: Any, now: Any) -> bool:
    """Say the same of an attribute of an object that the module keeps."""
    if is_a(now, (torch.Tensor, fx.Proxy)):
        return is_a(before, torch.Tensor) or _is_of_this_call(now)
    return moved_attribute(forward, name, before, now)


def moved_content(forward: Forward, name: str, container: Any, before: Any) -> bool:
    """Say whether a container carries something to the next call.

    What is made of parameters alone and put where nothing was is the same in the next call: a cache
    of that is no state.

    Args:
        forward: what filled it.
        name: of the attribute that holds the container; ``""`` if it is inside another.
        container: as it is now.
        before: what it held before the forward ran.

    """
    container = copied(container)
    if isinstance(container, dict):
        kept = [before.get(key, _MISSING) for key in container]
        moved = bool(before.keys() - container.keys()) or _any_moved(container.values(), kept)
    elif isinstance(container, (list, deque)):
        moved = len(container) != len(before) or _any_moved(container, before)
    else:
        moved = container != before
    return moved and not (name and _only_fills(forward, name))


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _any_moved(items: Any, before: Any) -> bool:
    earlier = {id(item) for item in before}
    for now, kept in zip(list(items), before, strict=True):
        if now is kept or (_is_plain(now) and _is_plain(kept) and now == kept):
            continue
        if is_a(now, (torch.Tensor, fx.Proxy)):
            if is_a(kept, torch.Tensor) or id(now) in earlier or _is_of_this_call(now):
                return True
        elif kept is not _MISSING or type(now) in _NUMBERS or _is_of_this_call(now):
            return True
    return False


def _is_of_this_call(value: Any) -> bool:
    """Say whether ``value`` is a stand-in for something that depends on the arguments of the call."""
    waiting = [value.node] if is_a(value, fx.Proxy) else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            return True
        waiting += [found for found in node.all_input_nodes if found not in seen]
        seen.update(waiting)
    return False


def _is_on_device(name: str, value: Any) -> bool:
    """Say whether ``value`` is what was there before, on the device of the input: ``x.to(y.device)``."""
    if not isinstance(value, fx.Proxy) or value.node.target != "to":
        return False
    source, *others = [*value.node.args, *value.node.kwargs.values()]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return False
    return str(source.target).rpartition(".")[2] == name and all(
        isinstance(other, fx.Node) and other.args[1:] == ("device",) for other in others
    )


# -- bytecode ----------------------------------------------------------------------------------------


def may_read(forward: Forward, name: str) -> bool:
    """Say whether ``forward``, or what it calls by name, mentions the attribute ``name``."""
    code = instructions_of(forward)
    return not code or any(_reads(instruction, name) for instruction in code)


def is_moved_by(others: Iterable[Forward], name: str) -> bool:
    """Say whether a forward that sets the attribute of another module reads it: ``self.part.n += 1``."""
    return any(_reads_first(other, name) for other in others)


@by_forward
def sets_elsewhere(forward: Forward) -> bool:
    """Say whether ``forward`` may set an attribute of something that is not itself."""
    before: Any = ""
    for step in steps_of(instructions_of(forward)):
        if step.sets_attribute and before != "self":
            return True
        if step.argument in ("setattr", "__setattr__", "__dict__", "vars"):
            return True
        before = step.argument
    return False


def _reads_first(forward: Forward, name: str) -> bool | None:
    """Say whether the attribute is read where it was not set: ``self.n += 1``; ``None`` if never named."""
    for instruction in instructions_of(forward):
        if _reads(instruction, name):
            return True
        if instruction.argval == name and instruction.opname in _STORES:
            return False
    return None


def _only_counts(forward: Forward, name: str) -> bool:
    """Say whether the attribute is read to be counted up alone: ``self.steps += 1``."""
    code = instructions_of(forward)
    uses = [index for index, found in enumerate(code) if _reads(found, name)]
    return bool(uses) and all(_is_counted(code[index + 1 : index + 6], name) for index in uses)


def _is_counted(following: Iterable[dis.Instruction], name: str) -> bool:
    for instruction in following:
        if instruction.opname in _STORES:
            return bool(instruction.argval == name)
        if not instruction.opname.startswith(_COUNTING):
            return False
    return False


def _only_fills(forward: Forward, name: str) -> bool:
    """Say whether nothing of an earlier call is read from the container that is the attribute ``name``.

    All that is done with it is ``self.log.append(x)`` or ``self.seen["key"] = x``, or the first is
    ``self.log.clear()``.
    """
    code = instructions_of(forward)
    uses = [index for index, found in enumerate(code) if _reads(found, name)]
    if not uses:
        return False
    if code[uses[0] + 1].argval == "clear":
        return True
    return all(_is_filled([*code[index + 1 : index + 3], None, None]) for index in uses)


def _is_filled(following: list[dis.Instruction | None]) -> bool:
    key, store = following[:2]
    if key is None or store is None:
        return False
    if key.argval in _FILL and ("METHOD" in key.opname or "ATTR" in key.opname):
        return True
    return key.opname.startswith("LOAD_") and store.opname == "STORE_SUBSCR"


def _reads(instruction: dis.Instruction, name: str) -> bool:
    """Say whether an instruction names the attribute or variable, not to set it.

    As a string it may be asked for.
    """
    if instruction.argval != name:
        return False
    operation = instruction.opname
    is_named = any(kind in operation for kind in ("ATTR", "METHOD", "GLOBAL", "DEREF"))
    return (is_named and operation not in _STORES) or operation.startswith("LOAD_CONST")
