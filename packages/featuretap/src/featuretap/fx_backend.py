"""The fx backend: record both modes, select, prune, and put an extractor together."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import fx, nn

from .backends import Options
from .errors import UntraceableModelError
from .extractor import ExtractorParts, FeatureExtractor, populate
from .faithful import Untouched
from .naming import operation_name
from .node_names import NodeNames
from .pruning import prune
from .recording import Recording
from .selection import Selection
from .tracing import FeatureTracer

__all__ = ["FxBackend", "Recorded", "assemble", "record_modes"]

MODES = ("train", "eval")
Recorded: TypeAlias = Recording | UntraceableModelError


class FxBackend:
    """Serves models whose forward ``torch.fx`` can record."""

    def node_names(self, model: nn.Module, options: Options) -> NodeNames:
        """List the nodes of both modes."""
        recordings = record_modes(model, options)
        names, leaves, failures = {}, {}, {}
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
        """Make an extractor of ``requests``."""
        return assemble(model, record_modes(model, options), requests)


def assemble(
    model: nn.Module,
    recordings: Mapping[str, Recorded],
    requests: Mapping[str, Mapping[Any, str | None]],
) -> FeatureExtractor:
    """Make an extractor of ``requests`` from what was recorded."""
    selections = _select(recordings, requests)
    _warn_of_two_meanings(selections)
    parts = ExtractorParts(
        class_name=type(model).__name__,
        signature=_without_annotations(inspect.signature(model.forward)),
        graphs={},
        return_nodes={"train": {}, "eval": {}},
    )
    constants: dict[str, Any] = {}
    for mode in MODES:
        recording, selection = recordings[mode], selections.get(mode)
        if selection is None or isinstance(recording, UntraceableModelError):
            parts.graphs[mode] = f"this extractor has no {mode} mode: {recording}"
            continue
        parts.graphs[mode] = prune(recording, selection, recording.flags(mode))
        parts.return_nodes[mode] = selection.names_to_keys
        parts.fixed[mode] = recording.fixed_arguments
        parts.auto_leaves.update(recording.auto_leaves)
        constants.update(recording.constants)
    extractor = FeatureExtractor(parts)
    populate(extractor, model, constants)
    _note_flag_exceptions(extractor, recordings)
    extractor.training = model.training
    return extractor


def record_modes(
    model: nn.Module, options: Options
) -> dict[str, Recorded]:
    """Trace ``model`` in both modes; a mode that cannot be traced has its error instead.

    The mode that the model is in comes first and is traced with the flags as they are, so that
    submodules the user froze stay frozen. If nothing looked at a flag, that trace serves for both.

    Raises:
        UntraceableModelError: if neither mode can be traced.
    """
    first = "train" if model.training else "eval"
    second = "eval" if model.training else "train"
    recordings: dict[str, Recorded] = {first: _record(model, options)}
    recording = recordings[first]
    if isinstance(recording, Recording) and recording.serves_both_modes:
        return {**recordings, second: recording}
    untouched = Untouched(model)
    try:
        model.train(second == "train")
        recordings[second] = _record(model, options)
    finally:
        untouched.restore()
    errors = [error for error in recordings.values() if isinstance(error, UntraceableModelError)]
    if len(errors) == len(MODES):
        raise errors[0]
    return recordings


def _record(model: nn.Module, options: Options) -> Recorded:
    tracer = FeatureTracer(
        options.leaf_modules, options.autowrap_functions, options.autowrap_modules
    )
    try:
        return tracer.record(model, options.concrete_args)
    except UntraceableModelError as error:
        return error


def _select(
    recordings: Mapping[str, Recorded],
    requests: Mapping[str, Mapping[Any, str | None]],
) -> dict[str, Selection]:
    selections: dict[str, Selection] = {}
    for mode in MODES:
        recording = recordings[mode]
        if isinstance(recording, Recording):
            same = recordings["train"] is recording and requests["train"] == requests[mode]
            selections[mode] = (
                selections["train"]
                if same and "train" in selections
                else Selection.resolve(requests[mode], recording, mode)
            )
    return selections


def _warn_of_two_meanings(selections: Mapping[str, Selection]) -> None:
    """Warn, by name, where one name is another operation in train than in eval."""
    if len(selections) < len(MODES) or selections["train"] is selections["eval"]:
        return
    for name in selections["train"].names_to_keys.keys() & selections["eval"].names_to_keys.keys():
        train, evaluate = (_meaning(selections[mode].by_name(name).value) for mode in MODES)
        if train != evaluate:
            warnings.warn(
                f"{name!r} is {train} in train mode but {evaluate} in eval mode; "
                "pass train_return_nodes and eval_return_nodes to say which you mean",
                UserWarning,
                stacklevel=5,
            )


def _meaning(value: Any) -> str:
    if not isinstance(value, fx.Node):
        return type(value).__name__
    if value.op in ("call_function", "call_method"):
        return f"the operation {operation_name(value.target)!r}"
    return f"{value.op} {value.target!r}"


def _note_flag_exceptions(
    extractor: FeatureExtractor, recordings: Mapping[str, Recorded]
) -> None:
    paths = [path for path, _ in extractor.named_modules() if path]
    for mode in MODES:
        recording = recordings[mode]
        if isinstance(recording, Recording):
            is_training: Callable[[nn.Module], bool] = recording.flags(mode)
            modules = recording.tree.paths
            extractor._parts.flag_exceptions[mode] = [
                path
                for path in paths
                if path in modules and is_training(modules[path]) != (mode == "train")
            ]


def _without_annotations(signature: inspect.Signature) -> inspect.Signature:
    """Drop annotations: they may name types that cannot be pickled."""
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=empty)
