"""What becomes of our hooks in a copy of a module that is made while somebody watches the module.

A forward may copy what it calls (a teacher that is made of the student in the first call), or save it.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from .._compat import remove_hooks

__all__ = ["OwnHook"]


class OwnHook(functools.partial):  # type: ignore[type-arg]
    """A hook of ours, in whose place a copy of its module, or a file, has one that does nothing."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _Spent, ()


class _Spent:
    """Stands in a copy for a hook of the original, until the copy is called."""

    def __call__(self, module: nn.Module, *_: Any) -> None:
        hooks = {**module._forward_pre_hooks, **module._forward_hooks}
        for key in [key for key, hook in hooks.items() if type(hook) is _Spent]:
            remove_hooks(module, key, before=True)
