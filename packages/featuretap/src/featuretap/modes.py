"""Train and eval: two recordings of one model, and which operation of one is which of the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from torch import fx, nn

from .backends import MODES, Options
from .errors import UntraceableModelError
from .graphs import meta_keys
from .inspecting.reading import Forward, names_in
from .inspecting.remembering import by_forward
from .inspecting.whose import is_users
from .keeping.carry_over import Again
from .keeping.recursion import more_recursion
from .keeping.switching import switched_back
from .keeping.undisturbed import ONE_AT_A_TIME
from .keeping.untouched import Untouched
from .messages import untraceable
from .modules import ModuleTree, switch
from .names.alignment import Alignment, Operations
from .recording import Recording
from .trace.flags import FlagSetError, flags_shown, may_show_flags
from .tracing import FeatureTracer

__all__ = ["Recorded", "SameOperations", "record_modes"]

_ATTEMPTS = 3

Recorded: TypeAlias = Recording | UntraceableModelError


def record_modes(model: nn.Module, options: Options) -> dict[str, Recorded]:
    """Trace ``model`` in both modes; a mode that cannot be traced has its error instead.

    The mode that the model is in comes first and is traced with the flags as they are, so that
    submodules the user froze stay frozen. If nothing looked at a flag, that trace serves for both.

    Raises:
        UntraceableModelError: if neither mode can be traced.

    """
    with ONE_AT_A_TIME, more_recursion():
        return _record_modes(model, options)


def _record_modes(model: nn.Module, options: Options) -> dict[str, Recorded]:
    first = "train" if model.training else "eval"
    second = "eval" if model.training else "train"
    untouched, tree = Untouched(model), ModuleTree(model)
    recordings: dict[str, Recorded] = {first: _record(tree, untouched, options)}
    recording = recordings[first]
    reads_unseen = any(map(_reads_flags_unseen, untouched.forwards))
    if isinstance(recording, Recording) and recording.serves_both_modes and not reads_unseen:
        return {**recordings, second: recording}
    if isinstance(recording, Recording) and tree.has_own_train_method:
        with _switched(tree, first, untouched):
            recording.note_flags()
    may_show = not reads_unseen and may_show_flags(model.modules())
    other = _record_other(tree, second, untouched, options, may_show=may_show)
    recordings[second] = other
    if isinstance(recording, Recording) and isinstance(other, Recording):
        recording.other, other.other = other, recording
    errors = [error for error in recordings.values() if isinstance(error, UntraceableModelError)]
    if len(errors) == len(MODES):
        raise errors[0]
    return recordings


def _record_other(
    tree: ModuleTree, mode: str, untouched: Untouched, options: Options, *, may_show: bool
) -> Recorded:
    """Trace the other mode; ``may_show`` says whether it can be shown to the trace alone."""
    try:
        if tree.has_own_train_method:
            with _switched(tree, mode, untouched):
                return _record(tree, Untouched(tree.model), options)
        if may_show:
            with suppress(FlagSetError), flags_shown(tree.model.modules(), mode == "train"):
                return _record(tree, untouched, options)
        with untouched.in_mode(tree.model, mode == "train"):
            return _record(tree, untouched, options)
    except UntraceableModelError as error:  # it has no such mode
        return error


@by_forward
def _reads_flags_unseen(forward: Forward) -> bool:
    """Say whether a forward may read flags past :mod:`.trace.flags`.

    In dicts, of copies of modules, in other threads, or where its class looks attributes up itself.
    """
    if not names_in(forward).isdisjoint(_PAST_ATTRIBUTES):
        return True
    return any("__getattribute__" in vars(base) for base in forward.kind.__mro__ if is_users(base))


_PAST_ATTRIBUTES = frozenset(
    "__dict__ vars __getstate__ copy deepcopy getattr_static Thread ThreadPool ThreadPoolExecutor submit "
    "apply_async".split()
)


@contextmanager
def _switched(tree: ModuleTree, mode: str, untouched: Untouched) -> Iterator[None]:
    """Switch a model by its own method, which may freeze modules and parameters, until it is left."""
    with switched_back(tree.model, untouched):
        switch(tree.model, mode == "train")
        yield


def _record(tree: ModuleTree, untouched: Untouched, options: Options) -> Recorded:
    try:
        return _traced(tree, untouched, options)
    except UntraceableModelError as error:
        return error


def _traced(tree: ModuleTree, untouched: Untouched, options: Options) -> Recording:
    """Trace a model as carefully as it needs, until nothing else has disturbed the trace."""
    is_careful, attempts = False, 0
    # Another thread, or a library that is imported on first use, may draw meanwhile; only a
    # forward that does it every time is refused.
    while attempts < _ATTEMPTS:
        tracer = FeatureTracer(tree, untouched, options, is_careful=is_careful)
        try:
            has_drawn = tracer.trace_once()
        except Again:
            is_careful = True
            continue
        if not has_drawn:
            return tracer.recording
        attempts += 1
    raise untraceable(tree.model, "the forward draws from Python's or NumPy's random numbers")


class SameOperations:
    """Says which names are the same operation in both modes.

    The path of a module always is; operations are aligned in their scope.
    """

    def __init__(self, train: Recording, evaluate: Recording) -> None:
        self._recordings = train, evaluate
        self._alignment = Alignment(_operations(train), _operations(evaluate))

    def agrees(self, name: str) -> bool:
        """Say whether ``name`` is the same operation in both."""
        points = [recording.names.get(name) for recording in self._recordings]
        nodes = [point.value for point in points if point and isinstance(point.value, fx.Node)]
        if len(nodes) < len(MODES) or nodes[0].op == "placeholder":
            return True
        scopes = [node.meta[meta_keys.SCOPE] for node in nodes]
        if scopes[0] != scopes[1]:
            return nodes[0].op == nodes[1].op == "call_module"
        return self._alignment.agrees(scopes[0], name)


def _operations(recording: Recording) -> Operations:
    found: dict[str, dict[str, Hashable]] = {}
    for name, point in recording.names.items():
        if isinstance(point.value, fx.Node):
            scope = point.value.meta[meta_keys.SCOPE]
            found.setdefault(scope, {})[name] = _likeness(point.value)
    return found


def _likeness(node: fx.Node) -> tuple[Any, ...]:
    """Return what two alike nodes share: the operation, and arguments that are plain values.

    Flags do not count, for the mode itself is often passed as one.
    """
    constants = [repr(a) for a in node.args if not isinstance(a, (fx.Node, bool))]
    return (node.op, node.target, len(node.all_input_nodes), *constants)
