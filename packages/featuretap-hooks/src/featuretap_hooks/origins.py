"""Where a tracked value came from, and what it tells whoever records the forward."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Origin"]


class Recorder(Protocol):
    """What a tracked value tells."""

    is_live: bool
    """Whether its forward runs."""

    @property
    def listening(self) -> bool:
        """Whether operations are recorded now, in this thread."""

    def derive(self, operation: str, value: Any, *sources: Any) -> Any:
        """Record that ``operation`` made ``value`` of ``sources``; return it, tracked."""

    def use(self, value: Any) -> None:
        """Record attributes that something takes, if they are not recorded yet."""

    def field(self, value: Any, source: Any) -> Any:
        """Note that ``value`` was read of the named tuple ``source``: a node once it is used."""


class Origin:
    """Where a tracked value came from.

    Attributes:
        recorder: who listens, as long as the forward runs.
        scope: where it was made; another scope that uses it cannot be recorded alone.
        pending: the value is an attribute (``x.shape``) that becomes a node when it is used, as in fx.
        parameter: the parameter that it is an attribute of, which is then used too.

    """

    __slots__ = ("parameter", "pending", "recorder", "scope")

    def __init__(
        self, recorder: Recorder, scope: str, *, pending: bool = False, parameter: Any = None
    ) -> None:
        self.recorder = recorder
        self.scope = scope
        self.pending = pending
        self.parameter = parameter
