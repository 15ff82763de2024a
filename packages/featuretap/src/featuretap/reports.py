"""What a comparison with the real forward has found, node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import DifferentValuesError

__all__ = ["Check", "Report", "by"]


class Check(NamedTuple):
    """One node of a report.

    Attributes:
        node: its name.
        equal: whether the values are the same bit for bit; ``None`` if nobody could see the real one.
        difference: the largest difference, ``None`` where kind or shape differ.
        note: what differs, or why nothing is known.

    """

    node: str
    equal: bool | None
    difference: float | None = None
    note: str = ""


class Report(Sequence[Check]):
    """What :func:`.verify` found, node by node in execution order; prints as a table.

    Attributes:
        mode: ``"train"`` or ``"eval"``.

    Example:
        >>> report = Report([Check("conv1", True, 0.0), Check("fc", False, 0.5)], "eval")
        >>> report.equal, report.first_difference.node
        (False, 'fc')
        >>> print(report)
        node   equal  largest difference
        --------------------------------
        conv1  yes    0
        fc     NO     0.5

    """

    def __init__(self, checks: Sequence[Check], mode: str) -> None:
        self._checks = tuple(checks)
        self.mode = mode

    def __getitem__(self, index: Any) -> Any:
        return self._checks[index]

    def __len__(self) -> int:
        return len(self._checks)

    @property
    def first_difference(self) -> Check | None:
        """The first node that differs; ``None`` if none does."""
        return next((check for check in self._checks if check.equal is False), None)

    @property
    def equal(self) -> bool:
        """Whether nodes were compared, and none of these differs."""
        return self.first_difference is None and any(check.equal for check in self)

    def raise_if_different(self) -> None:
        """Raise :class:`DifferentValuesError` for the first node that differs, or if none was compared."""
        first = self.first_difference
        if first is not None:
            raise DifferentValuesError(
                f"in {self.mode} mode {first.node!r} is the first node that differs from the real "
                f"forward{by(first)}"
            )
        if not self.equal:
            raise DifferentValuesError(
                f"in {self.mode} mode no node could be compared with the real forward:\n{self}"
            )

    def __str__(self) -> str:
        words = {True: "yes", False: "NO", None: "-"}
        rows = [("node", "equal", "largest difference", "")]
        rows += [
            (check.node or "(output)", words[check.equal], _number(check), check.note)
            for check in self._checks
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def by(check: Check) -> str:
    """Say how much a value differs."""
    if check.difference is None:
        return f": {check.note or 'another structure'}"
    return f", by up to {check.difference:.3g}"


def _number(check: Check) -> str:
    return "" if check.difference is None else f"{check.difference:.3g}"
