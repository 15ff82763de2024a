"""The fx backend: record both modes, select, prune, and put an extractor together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from .backends import MODES, Options
from .errors import NodeNotFoundError, UntraceableModelError
from .extractor import ExtractorParts, FeatureExtractor
from .graphs.installing import populate
from .graphs.pruning import Pruning
from .keeping.undisturbed import ONE_AT_A_TIME
from .keeping.undo import moves_of
from .modes import Recorded, SameOperations, record_modes
from .modules import converts_itself
from .names.alignment import warn_of_two_operations
from .names.node_names import NodeNames
from .recording import Recording
from .refusals.checks import check_example
from .selection import Selection, is_glob
from .signatures import signature_of, with_defaults
from .verifying import prove

__all__ = ["FxBackend", "record_and_assemble"]


class FxBackend:
    """Serves models whose forward ``torch.fx`` can record."""

    def node_names(self, model: nn.Module, options: Options) -> NodeNames:
        """List the nodes of both modes."""
        recordings = _record(model, options)
        names: dict[str, list[str]] = {}
        leaves: dict[str, str] = {}
        failures: dict[str, str] = {}
        for mode in MODES:
            recording = recordings[mode]
            if isinstance(recording, UntraceableModelError):
                names[mode], failures[mode] = [], str(recording)
            else:
                names[mode] = list(recording.names)
                leaves.update(recording.auto_leaves)
        return NodeNames(names["train"], names["eval"], leaves, failures)

    def extractor(
        self, model: nn.Module, requests: Mapping[str, Mapping[Any, str | None]], options: Options
    ) -> FeatureExtractor:
        """Make an extractor of ``requests``; with example inputs, prove it on them."""
        extractor, _ = record_and_assemble(model, requests, options)
        extractor._options = options.without_example()
        if options.has_example:
            prove(extractor, model, options, _of_everything)
        return extractor


def _record(model: nn.Module, options: Options) -> dict[str, Recorded]:
    """Record both modes; refuse an example for which something else is fixed."""
    recordings = record_modes(model, options)
    for recording in recordings.values():
        if options.has_example and isinstance(recording, Recording):
            check_example(signature_of(model), recording.fixed_arguments, *options.example)
    return recordings


def record_and_assemble(
    model: nn.Module, requests: Mapping[str, Mapping[Any, str | None]], options: Options
) -> tuple[FeatureExtractor, dict[str, Recorded]]:
    """Make an extractor of ``requests``; return it with what was recorded."""
    with ONE_AT_A_TIME:  # flags of the model are read until the end
        recordings = _record(model, options)
        quiet = options.suppress_diff_warning
        return _assemble(model, recordings, requests, quiet=quiet), recordings


def _assemble(
    model: nn.Module,
    recordings: Mapping[str, Recorded],
    requests: Mapping[str, Mapping[Any, str | None]],
    *,
    quiet: bool = False,
) -> FeatureExtractor:
    """Make an extractor of ``requests`` from what was recorded.

    Unless ``quiet``, warn of a name asked for in both modes that is another operation in each.
    """
    selections = _select(recordings, requests)
    if requests["train"] is requests["eval"] and not quiet:
        _warn_of_two_meanings(recordings, selections)
    parts = ExtractorParts(
        class_name=type(model).__name__,
        signature=inspect.Signature(),
        graphs={},
        return_nodes={"train": {}, "eval": {}},
        converts_itself=converts_itself(model),
    )
    constants: dict[str, Any] = {}
    for mode in MODES:
        recording, selection = recordings[mode], selections.get(mode)
        if selection is None or isinstance(recording, UntraceableModelError):
            parts.graphs[mode] = f"this extractor has no {mode} mode: {recording}"
            continue
        parts.return_nodes[mode] = selection.names_to_keys
        parts.fixed[mode] = recording.fixed_arguments
        parts.auto_leaves.update(recording.auto_leaves)
        constants.update(recording.constants)
    fixed = {**parts.fixed["train"], **parts.fixed["eval"]}
    parts.signature = with_defaults(signature_of(model), fixed)
    graphs = _prune(recordings, selections)
    parts.graphs.update(graphs)
    tree = next(found.tree for found in recordings.values() if isinstance(found, Recording))
    flags = {
        mode: found.flags(mode)
        for mode, found in recordings.items()
        if isinstance(found, Recording)
    }
    parts.moves.update(moves_of(graphs, tree.paths, flags))
    extractor = FeatureExtractor(parts)
    populate(extractor, tree, constants)
    _note_flag_exceptions(extractor, recordings)
    extractor.training = model.training
    return extractor


def _of_everything(model: nn.Module, options: Options) -> FeatureExtractor:
    """Make an extractor of every node of both modes."""
    recordings = record_modes(model, options)
    requests = {
        mode: dict.fromkeys(recording.names) if isinstance(recording, Recording) else {}
        for mode, recording in recordings.items()
    }
    return _assemble(model, recordings, requests)


def _select(
    recordings: Mapping[str, Recorded],
    requests: Mapping[str, Mapping[Any, str | None]],
) -> dict[str, Selection]:
    selections: dict[str, Selection] = {}
    others = {"train": recordings["eval"], "eval": recordings["train"]}
    for mode in MODES:
        recording = recordings[mode]
        if isinstance(recording, Recording):
            same = recordings["train"] is recording and requests["train"] == requests[mode]
            selections[mode] = (
                selections["train"]
                if same and "train" in selections
                else _resolve(requests[mode], recording, mode, others[mode])
            )
    return selections


def _resolve(
    request: Mapping[Any, str | None], recording: Recording, mode: str, other: Recorded | None
) -> Selection:
    known = other if isinstance(other, Recording) else None
    for kind in (entry for entry in request if isinstance(entry, type)):
        leaf = recording.leaf_that_hides(kind)
        if leaf:
            raise _hidden(kind, leaf, recording)
    try:
        return Selection.resolve(request, recording, mode, known)
    except NodeNotFoundError as error:
        error.hidden = _hiding(error.name, recording)
        raise


def _hidden(kind: type[nn.Module], leaf: str, recording: Recording) -> NodeNotFoundError:
    """Return the error for modules of a type that are inside of a leaf: not every call would be there."""
    reason = f"fx cannot look into {leaf!r}: {recording.auto_leaves[leaf]}"
    error = NodeNotFoundError(
        f"not every call of a {kind.__name__} is a node: some are inside of {leaf!r}, which is one node. "
        f"{reason}. backend='hooks' looks into it, or ask for nodes by name",
        f"{{{kind.__name__}}}",
        [leaf],
    )
    error.hidden = reason
    return error


def _hiding(name: str, recording: Recording) -> str:
    """Say which leaf module hides the node called ``name``; ``""`` if none does."""
    for path, reason in recording.auto_leaves.items():
        if name.startswith(f"{path}.") or is_glob(name):
            return f"fx cannot look into {path!r}: {reason}"
    if name in recording.tree.paths:
        for point in recording.names.values():
            if name.startswith(f"{point.name}."):
                return f"{name!r} is inside the leaf module {point.name!r}"
    return ""


def _prune(
    recordings: Mapping[str, Recorded], selections: Mapping[str, Selection]
) -> dict[str, fx.Graph]:
    """Make the graph of each mode, once for modes that agree on recording and selection."""
    graphs: dict[str, fx.Graph] = {}
    pending = list(selections)
    while pending:
        recording, selection = recordings[pending[0]], selections[pending[0]]
        assert isinstance(recording, Recording)
        modes = [mode for mode in pending if selections[mode] is selection]
        pending = [mode for mode in pending if mode not in modes]
        made = Pruning(recording, selection).graphs(
            [recording.flags(mode) for mode in modes],
            consume=all(recordings[mode] is not recording for mode in pending),
        )
        graphs.update(zip(modes, made, strict=True))
    return graphs


def _warn_of_two_meanings(
    recordings: Mapping[str, Recorded], selections: Mapping[str, Selection]
) -> None:
    """Warn, by name, where one name is another operation in train than in eval."""
    train, evaluate = (recordings[mode] for mode in MODES)
    if train is evaluate or not isinstance(train, Recording) or not isinstance(evaluate, Recording):
        return
    asked = [selections[mode].names_to_keys for mode in MODES]
    same = SameOperations(train, evaluate)
    for name in asked[0].keys() & asked[1].keys():
        if not same.agrees(name):
            warn_of_two_operations(name)


def _note_flag_exceptions(extractor: FeatureExtractor, recordings: Mapping[str, Recorded]) -> None:
    for mode in MODES:
        recording = recordings[mode]
        odd = recording.flag_exceptions(mode) if isinstance(recording, Recording) else ()
        if odd:
            paths = (path for path, _ in extractor.named_modules())
            extractor._parts.flag_exceptions[mode] = [
                path for path in paths if path and path in odd
            ]
