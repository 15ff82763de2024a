"""Refuses what no graph can hold, and remembers it: the model may go on after an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..standins.likeness import COMPARISONS, kind_of

__all__ = ["RefusingTracer"]


class RefusingTracer(fx.Tracer):
    """A tracer whose refusals cannot be swallowed by an ``except`` of the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused: Exception | None = None
        # What a comparison of sizes gave, and nothing has asserted yet.
        self._answers: set[fx.Node] = set()

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse to branch on a value."""
        raise self.refusal("a branch depends on the value or the size of a tensor")

    def iter(self, obj: fx.Proxy) -> Any:
        """Refuse to iterate over what has no known length."""
        raise self.refusal(
            "a loop, or unpacking with a star, depends on the length of a tensor or size"
        )

    def refusal(self, reason: str) -> fx.proxy.TraceError:
        """Make an error that says why, and remember it."""
        self._refused = fx.proxy.TraceError(reason)
        return self._refused

    def raise_swallowed(self) -> None:
        """Raise what was refused in a forward that went on."""
        if self._refused is not None:
            raise self._refused

    def behind(self, raised: Exception) -> Exception:
        """Return what was refused, and forget it; if nothing was, what was ``raised``.

        Compiled code makes an error of its own of ours.
        """
        error, self._refused = self._refused or raised, None
        return error

    def check_answers(self, node: fx.Node, modules: dict[str, nn.Module]) -> None:
        """Refuse what calculates with ``True`` and ``False``, which are no nodes of the real forward."""
        if node.target in COMPARISONS and kind_of(node, modules) is bool:
            self._answers.add(node)
        elif self._answers:
            inputs = node.all_input_nodes
            if node.target is torch._assert:
                self._answers.difference_update(inputs)  # nearly all are compared for that
            elif inputs and self._answers.issuperset(inputs):
                self.graph.erase_node(node)
                raise self.refusal(
                    "the forward calculates with the answer to a comparison of sizes"
                )
