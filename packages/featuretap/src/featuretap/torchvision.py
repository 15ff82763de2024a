"""Drop-in for ``torchvision.models.feature_extraction``: change the import line and nothing else.

The names are featuretap's. They are torchvision's wherever those were right; where a requested name
meant another node there, a ``UserWarning`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from .api import make_options, make_requests
from .events import Point
from .extractor import FeatureExtractor
from .fx_backend import FxBackend, record_and_assemble
from .graphs import meta_keys
from .messages import warn
from .modes import Recorded
from .recording import Recording
from .wrappers import look_through

__all__ = ["create_feature_extractor", "get_graph_node_names"]


def get_graph_node_names(
    model: nn.Module,
    tracer_kwargs: dict[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: dict[str, Any] | None = None,
) -> tuple[list[str], list[str]]:
    """List the names of all nodes of ``model``, as torchvision's function of this name does.

    Args:
        model: any module that ``torch.fx`` can trace. It is left as it was.
        tracer_kwargs: see :func:`featuretap.get_graph_node_names`.
        suppress_diff_warning: do not warn if the two modes have different nodes.
        concrete_args: arguments of ``forward`` to fix: name -> value.

    Returns:
        The names of train mode and those of eval mode, each in execution order.

    Example:
        >>> import torch
        >>> train, evaluate = get_graph_node_names(torch.nn.Sequential(torch.nn.ReLU()))
        >>> train
        ['input', '0']

    """
    names = FxBackend().node_names(look_through(model), make_options(tracer_kwargs, concrete_args))
    if not suppress_diff_warning:
        names.warn_about_differences()
    return names.train, names.eval


def create_feature_extractor(
    model: nn.Module,
    return_nodes: list[str] | dict[str, str] | None = None,
    train_return_nodes: list[str] | dict[str, str] | None = None,
    eval_return_nodes: list[str] | dict[str, str] | None = None,
    tracer_kwargs: dict[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: dict[str, Any] | None = None,
) -> FeatureExtractor:
    """Make a module that returns chosen nodes, as torchvision's function of this name does.

    Args:
        model: any module that ``torch.fx`` can trace. It is left as it was.
        return_nodes: names, or a dict of names to output keys, for both modes.
        train_return_nodes: the same for train mode; needs ``eval_return_nodes``.
        eval_return_nodes: the same for eval mode; needs ``train_return_nodes``.
        tracer_kwargs: see :func:`featuretap.get_graph_node_names`.
        suppress_diff_warning: do not warn if the two modes have different nodes.
        concrete_args: arguments of ``forward`` to fix: name -> value.

    Raises:
        AssertionError: if the three requests do not go together (torchvision's own choice).
        ValueError: if a name is no node.

    Warns:
        UserWarning: for each name that meant another node in torchvision.

    Example:
        >>> import torch
        >>> extractor = create_feature_extractor(torch.nn.Sequential(torch.nn.ReLU()), ["0"])
        >>> list(extractor(torch.zeros(1)))
        ['0']

    """
    try:
        requests = make_requests(return_nodes, train_return_nodes, eval_return_nodes)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    model = look_through(model)
    options = make_options(tracer_kwargs, concrete_args)
    options = replace(options, suppress_diff_warning=suppress_diff_warning)
    extractor, recordings = record_and_assemble(model, requests, options)
    # Once where one recording serves both modes.
    for mode, recording in {id(r): (m, r) for m, r in recordings.items()}.values():
        _warn_of_other_meanings(extractor._parts.return_nodes[mode], recording)
    return extractor


def _warn_of_other_meanings(names: Mapping[str, str], recording: Recorded) -> None:
    """Warn of each name that torchvision resolves to another node than featuretap."""
    if not isinstance(recording, Recording):
        return
    theirs = recording.torchvision_points
    for name in names:
        ours = recording.find(name)
        before = theirs.get(name) or _last_inside(name, theirs)
        if ours is not None and before is not None and before.value is not ours.value:
            warn(f"{name!r} is {_what(ours)} here; torchvision's tool took it for {before.name!r}")


def _last_inside(name: str, points: Mapping[str, Point]) -> Point | None:
    """Return what torchvision takes a module's name for: the last node listed inside."""
    inside = [point for listed, point in points.items() if listed.startswith(f"{name}.")]
    return inside[-1] if inside and name else None


def _what(point: Point) -> str:
    if isinstance(point.value, fx.Node):
        return f"the node {point.value.meta.get(meta_keys.NAME, point.name)!r}"
    return f"what the module returned, a {type(point.value).__name__}"
