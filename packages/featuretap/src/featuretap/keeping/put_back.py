"""Hooks and attributes put back in place, so that whoever else holds them sees it.

Other threads may use a module meanwhile, and come and go with hooks of featuretap: what they put there
is no part of a module as it was.
"""

from __future__ import annotations

from typing import Any

from ..inspecting.containers import copied, same_items
from ..inspecting.whose import FEATURETAP

__all__ = [
    "HookKey",
    "is_own_hook",
    "restore_attributes",
    "restore_hooks",
    "without_own",
    "without_own_wrappers",
]

# Where a call is wrapped that must see no hooks.
_WRAPPED = ("forward", "_compiled_call_impl", "_call_impl")
_MISSING = object()


class HookKey:
    """What hooks of featuretap are registered under while a forward is watched.

    Other threads come and go with theirs, so they are no part of a model as it was.
    """

    __slots__ = ()


def is_own_hook(hook: object) -> bool:
    """Say whether a forward hook, or what stands for a ``forward``, was put there by featuretap."""
    module = getattr(hook, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in FEATURETAP


def without_own(registry: dict[Any, Any]) -> dict[Any, Any]:
    """Return the hooks of a registry that are not of featuretap."""
    return {
        key: hook
        for key, hook in copied(registry).items()
        if type(key) is not HookKey and not is_own_hook(hook)
    }


def restore_hooks(registry: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Let a registry hold the hooks ``kept``, and those of featuretap that it holds."""
    current = without_own(registry)
    if same_items(current, kept):
        return
    for key in current:
        registry.pop(key, None)
    registry.update(kept)


def without_own_wrappers(values: dict[str, Any]) -> None:
    """Put what a wrapper of featuretap stands for in its place."""
    if values.keys().isdisjoint(_WRAPPED):
        return
    for name in _WRAPPED:
        if _is_own_wrapper(name, values.get(name)):
            replaced = values.pop(name).replaced
            if replaced is not None:
                values[name] = replaced


def _is_own_wrapper(name: str, value: Any) -> bool:
    return name in _WRAPPED and is_own_hook(value) and hasattr(value, "replaced")


def restore_attributes(current: dict[str, Any], values: dict[str, Any]) -> None:
    """Put attributes back one by one, for another thread may be using the others."""
    if same_items(current, values):
        return
    for name, now in copied(current).items():
        if name not in values and not _is_own_wrapper(name, now):
            current.pop(name, None)
    for name, value in values.items():
        now = current.get(name, _MISSING)
        if now is not value and not _is_own_wrapper(name, now):
            current[name] = value
