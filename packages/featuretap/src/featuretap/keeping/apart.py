"""Runs a copy of a model in its place, and the model itself where the copy comes back to it."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import nn

from ..inspecting.reading import forward_of
from .held import tensors_in
from .replica import Replica, replica_of
from .saved import SavedTensors, version_of

__all__ = ["originals_refused", "run_apart"]

_T = TypeVar("_T")


def run_apart(run: Callable[[Replica], _T], model: nn.Module, *others: nn.Module) -> _T:
    """Return ``run(replica)`` for a copy of ``model``, and of ``others`` that run its modules.

    Where a copy is not safe it is run for the model itself, and so where the code of the copy turns out to
    call a module of the model, or to write a tensor of one, which it found in a way that nobody can read
    (see :func:`.replica_of`); ``run`` calls the copy in :func:`originals_refused`.
    """
    replica = replica_of(model, *others)
    if replica is not None:
        with suppress(_OriginalUsed), _originals_unwritten(model):
            return run(replica)
    return run(Replica(model, others, {}))


class _OriginalUsed(BaseException):
    """A copy uses a module of the model. No ``Exception``, so that no forward catches it."""


@contextmanager
def originals_refused(replica: Replica) -> Iterator[None]:
    """While entered, the call of a module that was copied raises in this thread, before it does anything.

    Seen as a profiler sees calls: nothing is put on the modules, which other threads may run. Where there
    is a profiler already, nobody looks.
    """
    if replica.original is None or sys.getprofile() is not None:
        yield
        return
    modules = list(replica.original.modules())
    originals = set(map(id, modules))
    functions = [nn.Module.__call__, *(forward_of(module).function for module in modules)]
    # By identity: the hash of a code object is that of all that it holds.
    codes = {id(f.__code__) for f in functions if isinstance(f, types.FunctionType)}

    def look(frame: types.FrameType, event: str, _argument: Any) -> None:
        if event != "call" or id(frame.f_code) not in codes:
            return
        owner = frame.f_code.co_varnames[:1]
        if owner and id(frame.f_locals.get(owner[0])) in originals:
            raise _OriginalUsed

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


@contextmanager
def _originals_unwritten(model: nn.Module) -> Iterator[None]:
    """Put back the tensors that the modules of ``model`` keep, if something has written them.

    While another thread is there nobody can say who has, and nobody looks.
    """
    if threading.active_count() > 1:
        yield
        return
    saved, tensors = SavedTensors(), [t for module in model.modules() for t in tensors_in(module)]
    for tensor in tensors:
        saved.save(tensor)
    before = list(map(version_of, tensors))
    yield
    if before != list(map(version_of, tensors)):
        saved.restore()
        raise _OriginalUsed
