"""What a forward leaves behind that later calls would find: a graph would not leave it.

Later calls are the next one of the same forward, and those of other modules in this one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from ..inspecting.whose import is_of_torch
from ..recording import Recording
from .ambient import HooksOfEveryModule
from .untouched import Untouched

__all__ = ["Again", "CarryOver"]


class Again(BaseException):
    """Something was changed, and nobody knows by which forward; another trace must look more closely.

    No ``Exception``, so that no forward catches it.
    """


class CarryOver:
    """Looks at the modules of one trace as they are called.

    Args:
        model: the modules as they were before.
        recording: of the trace.
        refuse: makes an error for what cannot be recorded.
        is_careful: look at all of a module before and after each call of it, which costs more than
            the trace. Otherwise what needs that raises :class:`Again`.

    """

    def __init__(
        self,
        model: Untouched,
        recording: Recording,
        refuse: Callable[[str], Exception],
        *,
        is_careful: bool,
    ) -> None:
        self._model = model
        self._recording = recording
        self._refuse = refuse
        self._is_careful = is_careful
        self._hooks = HooksOfEveryModule()
        # Path of each module that was looked into -> attributes that were set before its first call.
        self._given: dict[str, list[str]] = {}
        # Path -> what another has changed before its call, and it reads.
        self._found_moved: dict[str, str] = {}

    def check_leaf(self, module: nn.Module, path: str, *, is_leaf: bool = True) -> None:
        """Refuse a call of a leaf that would be another one in the graph."""
        changed = self._model.changed_attribute(module)
        if changed:
            raise self._refuse(
                f"the forward sets .{changed} of {path!r}, which a graph would not set again"
            )
        if self._hooks.forget_new():
            raise self._refuse(
                "the forward registers hooks for every module, which a graph would not do again"
            )
        if is_leaf and (module._modules or not is_of_torch(type(module))):
            moved = self._model.moved_for(module)
            if moved:
                raise self._refuse(_READS.format(moved, path))

    def enter(self, module: nn.Module, path: str, *, is_leaf: bool) -> None:
        """Look at a module before a call of it; ``is_leaf`` if it cannot be looked into."""
        if is_leaf or self._is_careful:
            self.check_leaf(module, path, is_leaf=is_leaf)
        if self._is_careful:
            self._found_moved[path] = self._model.moved_for(module)
        if path not in self._given:
            self._given[path] = self._model.given(module)

    def leave(self, module: nn.Module, path: str, start: int) -> None:
        """Look at a module after its forward, and at those that it called.

        Args:
            module: the module.
            path: its path.
            start: how many events there were before its forward.

        """
        if path and not self._is_careful:
            return  # the look at the end finds it, and has a careful trace say which forward it was
        moved = self._model.moved_state(module, self._given[path])
        if moved:
            raise self._refuse(_CHANGES.format(moved))
        self._look_inside(path)
        if self._model.sets_elsewhere:
            self._look_at_leaves(start)

    def fail(self, module: nn.Module, path: str) -> None:
        """Look at a module that is about to become a leaf: it must be what it was before its call."""
        if not self._is_careful and (
            self._model.changed_attribute(module) or self._model.moved_for(module)
        ):
            raise Again
        moved = self._found_moved.get(path)
        if moved:
            raise self._refuse(_READS.format(moved, path))
        # What ran in it runs anew in each call.
        for called in [name for name in self._given if f"{name}.".startswith(f"{path}.")]:
            del self._given[called]

    def _look_inside(self, path: str) -> None:
        """Refuse what was changed in the modules inside ``path`` after their calls."""
        prefix = f"{path}." if path else ""
        for called, given in self._given.items():
            if called != path and called.startswith(prefix):
                moved = self._model.moved_state(self._recording.tree.paths[called], given)
                if moved:
                    raise self._blamed(_CHANGES.format(f"{moved} of {called!r}"))

    def _look_at_leaves(self, start: int) -> None:
        for event in self._recording.events[start:]:
            if isinstance(event, fx.Node) and event.op == "call_module":
                path = str(event.target)
                changed = self._model.changed_attribute(self._recording.tree.paths[path])
                if changed:
                    raise self._blamed(_CHANGES.format(f".{changed} of {path!r}"))

    def _blamed(self, reason: str) -> BaseException:
        """Return the error for the forward that just ended, if that is known to be the one."""
        return self._refuse(reason) if self._is_careful else Again()


_READS = (
    "the forward changes {}, which {!r} reads: as one node it would find there what an earlier call "
    "has left"
)
_CHANGES = "the forward changes {}, which the next call would read"
