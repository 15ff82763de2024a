"""The forward that plain hooks would do as well, in as few steps.

Outputs of modules are wanted, and forwards before it have shown that the model keeps nothing, draws
nothing and switches nothing. On a GPU, where small kernels wait for Python, each step counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import _getframe, exc_info
from threading import get_ident
from typing import Any, TypeAlias

import torch
from torch import nn

from featuretap._compat import draws_random_numbers, functorch_level, storage_id
from featuretap.inplace import moves_in_training
from featuretap.keeping.put_back import HookKey

from ._compat import add_hooks, call_uncompiled, is_failing, modes_are_on, remove_hooks
from .calls.copied_hooks import OwnHook
from .calls.module_hooks import sees_hooks
from .captures import Captures, Stop
from .findings import Findings
from .plan import Plan
from .prepared import Prepared

__all__ = ["is_quiet", "may_run_again", "run_plain"]

Hook: TypeAlias = Callable[[nn.Module, Any, Any], Any]


def is_quiet(plan: Plan, prepared: Prepared, found: Findings) -> bool:
    """Say whether a forward leaves nothing behind, and may be run in the way that was prepared."""
    if not plan.leaves_nothing or prepared.quiet_run is None or not found.computes_alone:
        return False
    if not prepared.is_current:
        return False
    if prepared.part is None:
        for _, module in prepared.outputs:
            if sees_hooks(module):
                return False
    return True


def may_run_again(plan: Plan, prepared: Prepared, found: Findings) -> bool:
    """Say whether a forward that was left half-way, perhaps the first one, has left nothing behind."""
    if plan.moving is not None:
        return is_quiet(plan, prepared, found)
    moves = (module.training and moves_in_training(module) for module in found.modules)
    if any(moves) or not found.computes_alone:
        return False
    return not any(map(draws_random_numbers, found.own_code.names))


def run_plain(
    model: nn.Module,
    outputs: Sequence[tuple[str, nn.Module]],
    captures: Captures,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Run ``model`` and hand what the first call of each module returns to ``captures``."""
    key, thread = HookKey(), get_ident()
    failed: set[str] = set()

    def taker(path: str, module: nn.Module) -> Hook:
        def hook(called: nn.Module, _args: Any, value: Any) -> Any:
            if get_ident() != thread or path in failed or called is not module:
                return None
            if exc_info()[1] is not None and is_failing(_getframe(1)):
                failed.add(path)
                return None
            return captures.take(path, value, module)

        if is_usual and path not in captures.retained:
            return _keeper(captures, path, module, thread, failed, hook)
        return hook

    is_usual = captures.stored.is_settled and not modes_are_on()
    try:
        for path, module in outputs:
            add_hooks(module, key, None, OwnHook(taker(path, module)))
        captures.take("", call_uncompiled(model)(*args, **kwargs))
    finally:
        try:
            _take_off(outputs, key)
        except BaseException:  # an interrupt
            _take_off(outputs, key)
            raise


def _take_off(outputs: Sequence[tuple[str, nn.Module]], key: HookKey) -> None:
    for _, module in outputs:
        remove_hooks(module, key, before=False)


def _keeper(
    captures: Captures,
    path: str,
    module: nn.Module,
    thread: int,
    failed: set[str],
    otherwise: Hook,
) -> Hook:
    """Return a hook that does what :meth:`.Captures.take` does with a tensor that is kept as it is.

    In one function: what ran before the convolutions of a layer is in no cache of the processor any more
    after them.
    """
    missing, values, kept, level = captures.missing, captures.values, captures.kept, captures.level
    storages, is_copied = captures.stored.storages, path in (captures.overwritten or ())

    def hook(called: nn.Module, args: Any, value: Any) -> Any:
        if (
            type(value) is not torch.Tensor
            or called is not module
            or path not in missing
            or path in failed
            or exc_info()[1] is not None
            or get_ident() != thread
            or functorch_level() != level
            or value.is_inference()
            or storage_id(value) in storages
        ):
            return otherwise(called, args, value)
        if len(missing) == 1 and captures.stops:
            missing.clear()
            captures.ended = True
            values[path] = value
            captures.unproven.add(path)
            raise Stop(captures)
        if is_copied:
            return otherwise(called, args, value)
        missing.discard(path)
        values[path] = value
        kept.append((path, value, value._version))
        return None

    return hook
