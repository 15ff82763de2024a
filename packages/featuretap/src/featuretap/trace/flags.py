"""The ``training`` flags of modules, as the thread sees them that traces.

A data descriptor on ``nn.Module`` comes before the instance's own attribute. So reads are seen, and
one thread sees the flags of another mode, without touching any module. Other threads pass through it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["FlagSetError", "TrainingReads", "flags_shown", "may_show_flags"]


class FlagSetError(BaseException):
    """A forward sets a flag, which then must be that of the module itself.

    No ``Exception``, so that no forward catches it.
    """


class _Here(threading.local):
    """What this thread sees: who notes reads, and flag by ``id`` of the module."""

    def __init__(self) -> None:
        self.notes: list[TrainingReads] = []
        self.flags: dict[int, bool] = {}


_HERE = _Here()
_LOCK = threading.Lock()
_USERS: list[int] = []


def _get(module: nn.Module) -> bool:
    here = _HERE
    for note in here.notes:
        note.seen = True
    flag = here.flags.get(id(module))
    if flag is not None:
        return flag
    try:
        return bool(vars(module)["training"])
    except KeyError:
        raise AttributeError("training") from None


def _set(module: nn.Module, value: bool) -> None:
    here = _HERE
    # Who sets a flag to what it is would set it to that in the other mode, too, where it is another.
    for note in here.notes if "training" in vars(module) else ():  # a new module has none yet
        note.seen = True
    if id(module) in here.flags:
        raise FlagSetError
    vars(module)["training"] = value


_FLAG = property(_get, _set)


@contextmanager
def _descriptor() -> Iterator[None]:
    """Have the descriptor on ``nn.Module`` while entered; several threads may want it at once."""
    with _LOCK:
        _USERS.append(threading.get_ident())
        nn.Module.training = _FLAG  # type: ignore[assignment]
    try:
        yield
    finally:
        with _LOCK:
            _USERS.pop()
            if not _USERS:
                del nn.Module.training


class TrainingReads:
    """While entered, note whether this thread reads or sets the ``training`` flag of any module.

    Attributes:
        seen: whether it did.

    """

    def __init__(self) -> None:
        self.seen = False
        self._descriptor = _descriptor()

    def __enter__(self) -> TrainingReads:
        self._descriptor.__enter__()
        _HERE.notes.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _HERE.notes.remove(self)
        self._descriptor.__exit__(None, None, None)


def may_show_flags(modules: Iterable[nn.Module]) -> bool:
    """Say whether all of ``modules`` have their flag where :func:`flags_shown` can stand before it."""
    modules = list(modules)
    own = (
        vars(base).get("training", _FLAG)
        for kind in set(map(type, modules))
        for base in kind.__mro__
    )
    return all(found is _FLAG for found in own) and all("training" in vars(m) for m in modules)


@contextmanager
def flags_shown(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """While entered, have ``modules`` be in a mode for this thread alone.

    Raises:
        FlagSetError: where somebody sets one of these flags in this thread.

    """
    flags = dict.fromkeys(map(id, modules), training)
    with _descriptor():
        earlier, _HERE.flags = _HERE.flags, flags
        try:
            yield
        finally:
            _HERE.flags = earlier
