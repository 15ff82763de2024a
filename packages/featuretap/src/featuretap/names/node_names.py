"""The list of node names that a user gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..messages import warn

__all__ = ["NodeNames"]


class NodeNames(list[str]):
    """Names usable in both modes, in execution order.

    Attributes:
        train: all names of train mode, in execution order.
        eval: all names of eval mode, in execution order.
        auto_leaves: path of each module that could not be traced and is one node -> why.
        failures: ``"train"`` or ``"eval"`` -> why the model cannot be used in that mode. The list
            then has the names of the other one.

    >>> names = NodeNames(["x", "conv", "drop"], ["x", "conv"])
    >>> names, names.train
    (['x', 'conv'], ['x', 'conv', 'drop'])

    """

    def __init__(
        self,
        train: Iterable[str],
        eval: Iterable[str],  # noqa: A002 (the mode's name)
        auto_leaves: Mapping[str, str] | None = None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        self.train = list(train)
        self.eval = list(eval)
        self.auto_leaves = dict(auto_leaves or {})
        self.failures = dict(failures or {})
        both: list[str]
        if self.failures:
            both = self.train if "eval" in self.failures else self.eval
        else:
            in_train = set(self.train)
            both = [name for name in self.eval if name in in_train]
        super().__init__(both)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.train, self.eval, self.auto_leaves, self.failures)

    def warn_about_differences(self) -> None:
        """Warn, by name, about nodes that exist in one mode only, or a mode that failed."""
        for mode, reason in self.failures.items():
            warn(f"the model can be listed in one mode only; in {mode} mode it cannot: {reason}")
        if self.failures:
            return
        common = set(self)
        only = {
            mode: [name for name in names if name not in common]
            for mode, names in (("train", self.train), ("eval", self.eval))
        }
        parts = [f"only in {mode} mode: {_some(names)}" for mode, names in only.items() if names]
        if parts:
            warn(
                f"some nodes exist in one mode only ({'; '.join(parts)}). To extract them pass "
                "train_return_nodes and eval_return_nodes; suppress_diff_warning=True silences this"
            )


def _some(names: list[str], count: int = 8) -> str:
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
