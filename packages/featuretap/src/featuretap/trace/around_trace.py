"""Around one trace: what it may disturb is put back, and what it must not miss is shown to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..faithful import Guard, RealTensorMode
from ..keeping.gradients import GradientFlags
from ..keeping.surroundings import Surroundings
from ..modules import ModuleTree
from ..refusals.refused import refused_functions
from ..refusals.unseen import UnseenOperations
from .flags import TrainingReads
from .indexing import indexing_shown
from .regions import RegionWatch
from .wrapping import patched_everywhere, patched_functions

if TYPE_CHECKING:
    from ..standins.real_tensors import RealTensors

__all__ = ["around_trace"]


@contextmanager
def around_trace(
    tree: ModuleTree,
    guard: Guard,
    regions: RegionWatch,
    wrapped: tuple[Callable[..., Any], ...],
    real: RealTensors,
    refuse: Callable[[str], Exception],
) -> Iterator[TrainingReads]:
    """While entered, a trace of ``tree.model`` may run; yield what it reads of ``training`` flags.

    Args:
        tree: the model.
        guard: what the trace may disturb.
        regions: told of ``no_grad``, ``autocast`` and their like.
        wrapped: functions that are recorded as one node.
        real: shown what torch does.
        refuse: makes an error for what cannot be recorded.

    """
    reads = TrainingReads()
    with ExitStack() as stack:
        stack.callback(Surroundings(tree.paths.values()).restore)
        stack.callback(GradientFlags(tree.parameters.values()).restore)
        stack.enter_context(guard)
        # Neither the caller's grad mode nor its autocast may leak into what is recorded.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(reads)
        stack.enter_context(refused_functions(refuse, guard.model.forwards))
        stack.enter_context(regions.noting())
        stack.enter_context(patched_functions())
        stack.enter_context(patched_everywhere(wrapped))
        stack.enter_context(indexing_shown())
        stack.enter_context(UnseenOperations(real))
        stack.enter_context(RealTensorMode(real))
        yield reads
