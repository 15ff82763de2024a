"""Tensors that a module leaves where another finds them, past what it returns: the graph sees neither."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from ..inspecting.containers import CONTAINERS
from ..inspecting.looking import is_a
from ..inspecting.reading import (
    CHANGES_CONTAINERS,
    Forward,
    forward_of,
    instructions_of,
    names_in,
    steps_of,
)
from ..inspecting.remembering import by_forward
from ..inspecting.whose import is_of_torch, is_our_module
from ..keeping.held import attributes
from ..keeping.put_back import without_own

__all__ = ["Leaves"]


class Leaves:
    """The modules that are one node in a graph, and what they may do behind its back."""

    def __init__(self) -> None:
        self._paths: dict[str, bool] = {}
        self._hooks: list[Forward] = []

    def add(self, path: str, leaf: nn.Module) -> None:
        """Note that a leaf is called."""
        if path in self._paths:
            return
        parts = list(leaf.modules())
        hooks = [_code_of(hook, type(part)) for part in parts for hook in _hooks(part)]
        leaving = [code for code in hooks if code is None or _fills_or_sets(code)]
        self._hooks += filter(None, leaving)
        own = (forward_of(part) for part in parts if not is_of_torch(type(part)))
        self._paths[path] = bool(leaving) or any(map(_fills_or_sets, own))

    @property
    def that_may_leave_tensors(self) -> str:
        """The path of one that may put a tensor into a container or an attribute; ``""`` if none may."""
        return next((path for path, may in self._paths.items() if may), "")

    def left_by_hooks(self, modules: Iterable[nn.Module]) -> str:
        """Name what a hook may set or fill and the forward of one of ``modules`` looks at; or ``""``."""
        if not self._hooks:
            return ""
        stored = {n for hook in self._hooks for n in _stored_names(hook)}
        mentioned = {n for hook in self._hooks for n in names_in(hook)}
        for module in modules:
            looked_at = names_in(forward_of(module))
            filled = {name for name, value in attributes(module) if is_a(value, CONTAINERS)}
            for name in (*(stored & looked_at), *(mentioned & looked_at & filled)):
                return name
        return ""


def _hooks(module: nn.Module) -> Iterator[Any]:
    for registry in (module._forward_hooks, module._forward_pre_hooks):
        for hook in without_own(registry).values():
            # Those of ``weight_norm``, ``prune`` and their like write the module that they are on.
            kind = hook if is_a(hook, (types.FunctionType, types.MethodType)) else type(hook)
            if not is_our_module(kind.__module__):
                yield hook


def _code_of(hook: Any, kind: type) -> Forward | None:
    """Return the code of a hook, to be read like a forward; ``None`` if nobody can read it."""
    while is_a(hook, functools.partial):
        hook = hook.func
    if is_a(hook, types.MethodType):
        return Forward(type(hook.__self__), hook.__func__)
    if is_a(hook, types.FunctionType):
        return Forward(kind, hook)
    called = inspect.getattr_static(type(hook), "__call__", None)
    return Forward(type(hook), called) if is_a(called, types.FunctionType) else None


@by_forward
def _fills_or_sets(code: Forward) -> bool:
    return any(
        step.sets_attribute or step.sets_item or step.argument in _CHANGES
        for step in steps_of(instructions_of(code))
    )


@by_forward
def _stored_names(code: Forward) -> frozenset[str]:
    """Return the attributes that code sets, by a statement or by a name that it spells out."""
    names = {s.argument for s in steps_of(instructions_of(code)) if s.sets_attribute}
    if "setattr" in names_in(code):
        names |= {i.argval for i in instructions_of(code) if isinstance(i.argval, str)}
    return frozenset(names)


_CHANGES = CHANGES_CONTAINERS | {"setattr", "__setattr__"}
