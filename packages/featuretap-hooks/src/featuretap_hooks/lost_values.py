"""A value that was overwritten before anybody copied it, and whether the forward may run again for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from featuretap._compat import hooks_of_every_module, no_torch_function
from featuretap.inspecting.looking import is_a
from featuretap.keeping.held import attributes
from featuretap.keeping.put_back import without_own

from .findings import Findings

__all__ = ["LostValueError", "may_be_done_twice", "versions_of"]


class LostValueError(RuntimeError):
    """A value was overwritten that nobody has copied."""


def versions_of(*arguments: Any) -> list[int] | None:
    """Return what shows whether arguments were written; ``None`` where nothing does."""
    versions = []
    with no_torch_function():  # somebody may watch
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and not argument.is_inference():
                versions.append(argument._version)
            elif not isinstance(argument, _UNCHANGEABLE):
                return None
    return versions


_UNCHANGEABLE = (type(None), bool, int, float, str)


def may_be_done_twice(found: Findings) -> bool:
    """Say whether all that a forward may do besides computing is put back when it fails.

    Buffers of layers, parameters and random numbers are; what a hook of the user's does is not.
    """
    own = found.own_code
    if own.switches or own.writes_unseen or not own.names.isdisjoint(_LEAVES_GRADIENTS):
        return False
    if found.storing or found.written_places or found.reaching_outside or found.writing_outside:
        return False
    return not any(hooks_of_every_module()) and not any(map(_holds_code, found.modules))


def _holds_code(module: nn.Module) -> bool:
    """Say whether code that is not read may run in a call of ``module``."""
    hooks = (*without_own(module._forward_hooks), *without_own(module._forward_pre_hooks))
    held = (value for _, value in attributes(module))
    return bool(hooks) or any(
        is_a(value, Iterator) or (callable(value) and not _is_torchs(value)) for value in held
    )


def _is_torchs(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == "torch"


_LEAVES_GRADIENTS = frozenset({"backward", "grad", "autograd"})
