"""What the plan of one mode means for the modules as they are now: found once, used by each forward."""

from __future__ import annotations

from collections.abc import Callable

from featuretap.modules import are_current, links_to

from .findings import Findings
from .plan import Plan, Watch

__all__ = ["Prepared"]


class Prepared:
    """A plan with the modules it is about.

    Args:
        plan: what is wanted.
        found: what is known of the modules.
        whole: record the whole model where something must be recorded.
        stop: whether a forward ends when everything is there.

    Attributes:
        watch: how the names are watched.
        outputs: the modules whose first output is wanted, if nothing must be recorded.
        part: the modules to record, if something must be.
        program: the same for compiled code.
        quiet_run: runs the model and hands over what is wanted, where forwards were seen to leave
            nothing behind; ``None`` if that takes more.

    """

    def __init__(self, plan: Plan, found: Findings, *, whole: bool, stop: bool) -> None:
        tree = found.tree
        self.watch = Watch.of(plan.keys or (), tree, found.inputs)
        self.outputs = [(path, tree.paths[path]) for path in self.watch.outputs if path]
        # Before a forward was seen every value may be in the memory of a buffer.
        is_unknown = not plan.overwritten and not found.stored.is_empty
        self.program = self.watch.program(
            plan.keys or {},
            plan.calls,
            tree,
            stop=stop,
            retained=self.watch.names if is_unknown else plan.retained,
        )
        calls = None if whole else plan.calls
        self.part = self.watch.part(calls, tree, found.is_leaf) if self.watch.scopes else None
        self.needs_outputs_alone = self.part is None and not self.watch.inputs
        self.quiet_run: Callable[..., None] | None = None
        watched = [*self.watch.outputs, *self.watch.scopes]
        if self.part is not None:
            watched += [path for path, _, _ in self.part.modules]
        self._links = list(links_to(tree.model, watched))

    @property
    def is_current(self) -> bool:
        """Whether the watched modules are still the ones at their paths."""
        return are_current(self._links)
