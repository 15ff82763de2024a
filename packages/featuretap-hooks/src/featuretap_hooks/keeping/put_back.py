"""A forward that fails leaves state and random numbers as it found them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from torch import nn

from featuretap._compat import ends_recomputation
from featuretap.inspecting.whose import is_of_torch
from featuretap.keeping.ambient import Ambient
from featuretap.keeping.gradients import Gradients
from featuretap.keeping.held import kept_tensors
from featuretap.keeping.outside import Outside, tensors_outside
from featuretap.keeping.random_numbers import foreign_random_state
from featuretap.keeping.saved import SavedTensor
from featuretap.keeping.undo import Undo

from ..captures import Stop
from ..findings import Findings
from ..inspecting.writable import GivenContainers, Written, writable
from ..plan import Plan
from .contents import Contents

__all__ = ["PutBack"]


class _Restorable(Protocol):
    def restore(self) -> None:
        """Put back what was changed."""


def _nothing() -> None:
    return None


class PutBack:
    """Entered around one forward.

    The first forward of a plan shows which buffers and parameters move, whether random numbers are drawn,
    and whether anything changes outside of the modules; later ones copy that alone, beforehand.
    """

    def __init__(self, plan: Plan, found: Findings, arguments: Any, *, may_end: bool) -> None:
        self._plan = plan
        self._found = found
        switches = found.own_code.switches
        self._undo = Undo(self._places(), (), (), draws=self._plan.draws)
        self._kept = _Kept(found, self._plan.moving_kept)
        self._fingerprint, self._restore_foreign = self._foreign()
        kept = found.modules if switches else found.storing
        self._contents = Contents(kept, found.layout)
        found.layout = self._contents.layout
        self._ambient = Ambient() if switches else None
        may_freeze = switches or "grad" in found.own_code.names
        self._gradients = Gradients(found.tree.parameters.values()) if may_freeze else None
        may_change = may_end and found.own_code.changes_outside
        reaches = (may_change or self._plan.moves_outside) and found.reaching_outside
        self._outside = Outside(found.reaching_outside) if reaches else None
        # What is asked for where the forward might end.
        self._seen: list[Written | GivenContainers] = []
        if may_end:
            self._seen.append(Written(writable(found.written_places, arguments)))
            self._seen.append(GivenContainers(arguments))
        others: list[_Restorable | None] = [self._ambient, self._gradients, self._outside]
        self._others = [other for other in others if other is not None]

    def __enter__(self) -> PutBack:
        return self

    def changed(self) -> list[nn.Module]:
        """Return the modules that hold something else since this was entered, of those that may."""
        return self._contents.changed()

    def may_end(self) -> bool:
        """Say whether the forward may end here, if it was said to be one that might.

        All that it may switch over must be as it was, be put back by :meth:`turn_back`, or be what the
        first forward was seen to leave so.
        """
        is_set = self._ambient is not None and self._ambient.settings_changed
        is_frozen = self._gradients is not None and self._gradients.is_changed
        if is_set or is_frozen:
            return False
        known = self._plan.returning | self._plan.staying
        return all(change in known for change in self._changes())

    def turn_back(self) -> None:
        """Put back what a forward that was ended has not put back when it was left."""
        if self._outside is not None:
            self._outside.restore(self._plan.returning)

    def _changes(self) -> Iterator[object]:
        """Yield keys for what is not as it was, those of :meth:`.Untouched.changes`."""
        yield from self._contents.changes()
        if self._outside is not None:
            yield from self._outside.changes()
        for seen in self._seen:
            yield from seen.changes()

    def _foreign(self) -> tuple[object, Callable[[], None]]:
        """Look at Python's and NumPy's random numbers, unless forwards have shown to leave them alone."""
        return foreign_random_state() if self._plan.draws_elsewhere else (None, _nothing)

    def _places(self) -> Iterator[tuple[dict[str, Any], str]]:
        paths = self._found.tree.paths
        places = self._all_places() if self._plan.moving is None else self._plan.moving
        return ((vars(paths[path])[registry], name) for path, registry, name in places)

    def _all_places(self) -> Iterator[tuple[str, str, str]]:
        own = self._found.own_code
        for path, module in self._found.tree.paths.items():
            buffers: Any = module._buffers
            if not isinstance(buffers, dict):
                continue  # TorchScript keeps its own behind a wrapper
            yield from ((path, "_buffers", name) for name in buffers)
            if own.writes_weights:
                yield from (
                    (path, "_parameters", name)
                    for name in module._parameters
                    if own.writes_any_weight or name in own.names
                )

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        # An extractor around this one has all it wants, or a checkpoint: that is no failure.
        is_over = isinstance(error, Stop) or ends_recomputation(error)
        if error is not None and not is_over:
            self._undo.restore()
            self._restore_foreign()
            for other in (self._contents, *self._others, self._kept):
                other.restore()
        elif error is None and self._plan.moving is None:
            self._plan.draws = self._undo.drew
            moved = {(id(registry), name) for registry, name in self._undo.moved()}
            paths = self._found.tree.paths
            self._plan.moving = [
                (path, registry, name)
                for path, registry, name in self._all_places()
                if (id(vars(paths[path])[registry]), name) in moved
            ]
            self._plan.moving_kept = self._kept.moved()
            self._plan.draws_elsewhere = self._foreign()[0] != self._fingerprint
            is_moved = self._outside is not None and self._outside.may_have_moved
            self._plan.moves_outside = is_moved or self._found.own_code.switches
            self._plan.leaves_nothing = not (
                self._plan.moving
                or self._plan.moving_kept
                or self._plan.draws
                or self._plan.draws_elsewhere
            )


class _Kept:
    """Tensors that modules hold in attributes, containers and objects, and others that they write.

    Not the buffers.

    Args:
        found: what is known of the modules.
        paths: of the modules whose tensors may be written; ``None`` if that is to be found out.

    """

    def __init__(self, found: Findings, paths: Collection[str] | None) -> None:
        modules = zip(found.tree.paths, found.modules, strict=True) if paths != [] else ()
        self._saved = [
            (path, SavedTensor(tensor))
            for path, module in modules
            if (path in paths if paths is not None else not is_of_torch(type(module)))
            for tensor in kept_tensors(module)
        ]
        self._outside = list(map(SavedTensor, tensors_outside(found.writing_outside)))

    def moved(self) -> list[str]:
        """Return the paths of the modules whose tensors were written."""
        return list(dict.fromkeys(path for path, saved in self._saved if saved.is_written))

    def restore(self) -> None:
        """Put back what was changed."""
        for saved in (*(saved for _, saved in self._saved), *self._outside):
            saved.restore()
