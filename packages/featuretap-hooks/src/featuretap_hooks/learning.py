"""What a forward teaches about those that follow: which values must be copied, and when."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .captures import Captures
from .findings import Findings
from .plan import Plan

__all__ = ["learn"]


def learn(
    plan: Plan,
    captures: Captures,
    found: Findings,
    changed: Sequence[nn.Module],
    *,
    grad: bool,
    is_inside: bool,
) -> str:
    """Note in ``plan`` what one forward has shown; return the names of values that are lost.

    Args:
        plan: of the mode that the forward ran in.
        captures: its values; those that were overwritten, or are kept by the model, become copies.
        found: what is known of the model.
        changed: the modules that hold something else than before.
        grad: whether gradients were on.
        is_inside: whether another extractor watched it, for which everything was copied at once: that
            does not show what is overwritten.

    """
    captures.compare()
    stored = found.stored
    # A forward that ended early was found not to have written a parameter.
    weights_moved = not captures.unproven and captures.weights_moved
    if weights_moved:
        stored.add_weights(found.tree.parameters.values())
    changed = found.modules if captures.is_first else changed
    if changed or weights_moved:
        stored.look_again(changed)
        plan.retained |= captures.let_go()
    lost = captures.lost
    if not is_inside:
        known = plan.overwritten.setdefault(grad, set())
        known |= captures.copied | captures.unproven
        if lost or captures.exposed or found.own_code.writes_unseen:
            known |= set(plan.keys or ())  # a model that is so fickle is not trusted again
    return ", ".join(map(repr, sorted(lost)))
