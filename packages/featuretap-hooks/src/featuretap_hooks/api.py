"""The two functions, with the hooks backend as the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

import featuretap
from featuretap import NodeNames
from featuretap.api import Request

__all__ = ["create_feature_extractor", "get_graph_node_names"]


def get_graph_node_names(
    model: nn.Module,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
    *,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    backend: str = "hooks",
) -> NodeNames:
    """List the names of the nodes of ``model``, in execution order.

    Without example inputs nothing is run, and no operation can be known: the list then has the
    arguments and the modules of the model, in the order in which they were registered. With
    ``example_args`` (or ``example_kwargs``) the model is run once in each mode, and left as it was;
    the list then has every node.

    Args:
        model: the model.
        tracer_kwargs: ``leaf_modules``, ``autowrap_functions``, ``autowrap_modules``.
        suppress_diff_warning: say nothing of nodes that exist in one mode only.
        concrete_args: name -> value of arguments of ``forward`` that a call does not give.
        example_args: positional arguments of a call of the model.
        example_kwargs: keyword arguments of that call.
        backend: ``"hooks"``, ``"fx"`` or ``"auto"``.

    Raises:
        UntraceableModelError: if the model fails on the example inputs in both modes.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> get_graph_node_names(model, example_args=(torch.zeros(1, 2),))
        ['input', '0', '1']

    """
    return featuretap.get_graph_node_names(
        model,
        tracer_kwargs,
        suppress_diff_warning,
        concrete_args,
        example_args=example_args,
        example_kwargs=example_kwargs,
        backend=backend,
    )


def create_feature_extractor(
    model: nn.Module,
    return_nodes: Request | None = None,
    train_return_nodes: Request | None = None,
    eval_return_nodes: Request | None = None,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
    *,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    backend: str = "hooks",
    early_stop: bool = True,
    missing: str = "error",
) -> nn.Module:
    """Make a module that runs ``model`` and returns the values of chosen nodes.

    Args:
        model: the model.
        return_nodes: a name, a list of names, or a dict of names to output keys.
        train_return_nodes: the same for train mode alone.
        eval_return_nodes: the same for eval mode alone.
        tracer_kwargs: as of :func:`featuretap.create_feature_extractor`.
        suppress_diff_warning: do not warn where one name is another operation in each mode.
        concrete_args: name -> value of arguments of ``forward`` that a call does not give.
        example_args: positional arguments of a call of the model. With them names are checked now,
            and modules that run after the last requested node are left out of the parameters.
        example_kwargs: keyword arguments of that call.
        backend: ``"hooks"``, ``"fx"`` or ``"auto"``.
        early_stop: end each forward as soon as every requested value is there.
        missing: what to do when a forward does not reach a requested node: ``"error"`` raises
            :class:`featuretap.NodeNotReachedError`, ``"skip"`` leaves its key out.

    Returns:
        A module that takes the arguments of ``model`` and returns an ``OrderedDict`` of key to value,
        in execution order.

    Raises:
        NodeNotFoundError: if a name can be no node of the model.
        UntraceableModelError: if the model fails on the example in both modes.
        ValueError: if nothing is asked for, two nodes under one key, or ``missing`` is something else; if
            a lazy module has not made its parameters yet.
        TypeError: if the request, a name or a key has a wrong type.

    Warns:
        UserWarning: if a name is another operation in each mode, where there is an example.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> extractor = create_feature_extractor(model, {"0": "hidden"})
        >>> {key: tuple(value.shape) for key, value in extractor(torch.zeros(5, 2)).items()}
        {'hidden': (5, 3)}

    """
    return featuretap.create_feature_extractor(
        model,
        return_nodes,
        train_return_nodes,
        eval_return_nodes,
        tracer_kwargs,
        suppress_diff_warning,
        concrete_args,
        example_args=example_args,
        example_kwargs=example_kwargs,
        backend=backend,
        early_stop=early_stop,
        missing=missing,
    )
