"""The two functions: check what the user said, choose the backend, and speak to the user."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from torch import nn

from .backends import Options, available_backends, load_backend
from .errors import FallbackWarning, NodeNotFoundError, UntraceableModelError
from .messages import warn
from .names.node_names import NodeNames
from .selection import normalize
from .signatures import check_argument_names, signature_of
from .wrappers import look_through

__all__ = [
    "Request",
    "create_feature_extractor",
    "get_graph_node_names",
    "make_options",
    "make_requests",
]

# What ``return_nodes`` may be.
Entry: TypeAlias = str | type[nn.Module]
Request: TypeAlias = Entry | Collection[Entry | Collection[Entry]] | Mapping[Any, str]

_TRACER_KEYS = ("leaf_modules", "autowrap_functions", "autowrap_modules")


def get_graph_node_names(
    model: nn.Module,
    tracer_kwargs: Mapping[str, Any] | None = None,
    suppress_diff_warning: bool = False,
    concrete_args: Mapping[str, Any] | None = None,
    *,
    example_args: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
) -> NodeNames:
    """List the names of all nodes of ``model``, in execution order.

    A node is one recorded operation: a call of a leaf module, a function, a tensor method, an
    operator. It is called by the path of the module whose forward runs it and the operation:
    ``layer1.0.add``. Besides the listed names, :func:`create_feature_extractor` accepts the path of
    any module that is called (``layer1``: what it returned) and ``""`` (the model's output).

    The model is left as it was.

    Args:
        model: any module; what ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``
            returned is looked through.
        tracer_kwargs: ``leaf_modules`` (module types or instances that are not looked into),
            ``autowrap_functions`` (functions that are one node each where they are called by a global
            name or as ``module.name``) and ``autowrap_modules`` (Python modules whose functions are).
            Each is any iterable.
        suppress_diff_warning: do not warn if the two modes have different nodes.
        concrete_args: arguments of ``forward`` to fix: name -> value.
        example_args: positional arguments of an example call. Hooks watch it and list what it reaches.
        example_kwargs: keyword arguments of an example call.
        backend: ``"fx"``, ``"hooks"`` if featuretap-hooks is installed, or ``"auto"``: fx, and hooks where
            fx cannot serve.

    Returns:
        The names usable in both modes; ``.train`` and ``.eval`` have all names of each mode.

    Raises:
        UntraceableModelError: if the forward of ``model`` itself cannot be recorded, or fails on the
            example.
        ValueError: if an argument is fixed that does not exist, there is no such backend, or a lazy module
            has not made its parameters yet.
        TypeError: if an argument has a wrong type.

    Warns:
        UserWarning: if some nodes exist in one mode only, saying which.
        FallbackWarning: if hooks serve in the place of fx, saying why.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> get_graph_node_names(model)
        ['input', '0', '1']

    The names follow torchvision's ``feature_extraction`` (``torchvision.models``), where that is
    unambiguous.

    """
    options = make_options(tracer_kwargs, concrete_args, example_args, example_kwargs)
    names: NodeNames = _serve(
        model, backend, options, lambda chosen, inner: chosen.node_names(inner, options)
    )
    if not suppress_diff_warning:
        names.warn_about_differences()
    return names


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
    backend: str = "auto",
    early_stop: bool = True,
    missing: str = "error",
) -> nn.Module:
    """Make a module that returns the values of chosen nodes of ``model``.

    It takes the arguments that ``model.forward`` takes and returns ``OrderedDict[str, value]`` in
    execution order. Nothing after the last chosen node runs. Each value is bit for bit what the
    model computes there, as it was at that moment; parameters and buffers are the model's own.

    Args:
        model: any module, also what ``torch.compile`` or ``DataParallel`` returned. It is left as it was.
        return_nodes: a dict (node name -> output key), a list or tuple of names, or one name. A
            name may be a node, a module's path (what the module returned), ``""`` (the output), a
            glob (``"layer*.*.relu*"``), or a module type (every call of that type).
        train_return_nodes: the same for train mode alone; needs ``eval_return_nodes``.
        eval_return_nodes: the same for eval mode alone; needs ``train_return_nodes``.
        tracer_kwargs: see :func:`get_graph_node_names`.
        suppress_diff_warning: do not warn where one name is another operation in each mode.
        concrete_args: arguments of ``forward`` to fix: name -> value. A call may still pass them; fx
            takes no other value.
        example_args: positional arguments of an example call. The forward that fx records is compared
            with the real one on them, bit for bit, in both modes; where it differs it is refused, or
            hooks serve. Hooks learn from it what a forward reaches.
        example_kwargs: keyword arguments of an example call.
        backend: ``"fx"``, ``"hooks"`` if featuretap-hooks is installed, or ``"auto"``: fx, and hooks where
            fx cannot serve.
        early_stop: ``False`` has the forward go to its end, which hooks alone can: auto is hooks then.
        missing: what hooks do when a call does not reach a requested node: ``"error"`` raises
            :class:`NodeNotReachedError`, ``"skip"`` leaves its key out. With fx each call reaches all.

    Returns:
        With fx a :class:`torch.fx.GraphModule` with ``.graph``, ``.train_graph``, ``.eval_graph``,
        ``.return_nodes`` and ``.auto_leaves``; with hooks a module that passes for the model, with
        ``.return_nodes``.

    Raises:
        NodeNotFoundError: if a name is no node; the message has the nearest names.
        UntraceableModelError: if the forward of ``model`` itself cannot be recorded, was recorded
            wrongly, or fails on the example.
        ValueError: if nothing is asked for, two nodes under one key, an argument is fixed that does not
            exist, or what the backend cannot do; if a lazy module has not made its parameters yet.
        TypeError: if the request, a name or a key has a wrong type.

    Warns:
        UserWarning: if a name is another operation in each mode.
        FallbackWarning: if hooks serve in the place of fx, saying why.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> extractor = create_feature_extractor(model, {"1": "hidden"})
        >>> {key: tuple(value.shape) for key, value in extractor(torch.zeros(5, 2)).items()}
        {'hidden': (5, 3)}

    """
    requests = make_requests(return_nodes, train_return_nodes, eval_return_nodes)
    options = make_options(tracer_kwargs, concrete_args, example_args, example_kwargs)
    _check_ends(backend, early_stop, missing)
    options = replace(
        options,
        suppress_diff_warning=suppress_diff_warning,
        early_stop=early_stop,
        missing=missing,
    )
    if backend == "auto" and not early_stop:
        backend = "hooks"
    extractor: nn.Module = _serve(
        model, backend, options, lambda chosen, inner: chosen.extractor(inner, requests, options)
    )
    return extractor


def _check_ends(backend: str, early_stop: Any, missing: Any) -> None:
    """Check what the user said of forwards that end early, or do not come to a node."""
    if missing not in ("error", "skip"):
        raise ValueError(f"missing must be 'error' or 'skip', not {missing!r}")
    if not isinstance(early_stop, bool):
        raise TypeError(f"early_stop must be True or False, not {early_stop!r}")
    if backend == "fx" and (missing != "error" or not early_stop):
        raise ValueError("missing and early_stop are for the hooks backend; fx has no use for them")


def _serve(
    model: nn.Module, backend: str, options: Options, ask: Callable[[Any, nn.Module], Any]
) -> Any:
    """Ask the chosen backend; ``auto`` asks fx first and hooks where fx cannot serve."""
    if not isinstance(backend, str):
        raise TypeError(f"backend must be 'auto' or the name of a backend, not {backend!r}")
    model = look_through(model)
    check_argument_names(signature_of(model), options.concrete_args)
    if backend != "auto":
        return ask(load_backend(backend), model)
    unknown: NodeNotFoundError | None = None
    try:
        answer = ask(load_backend("fx"), model)
        reason = "; ".join(getattr(answer, "missing_modes", {}).values())
    except UntraceableModelError as error:
        answer, reason = error, str(error)
    except NodeNotFoundError as error:
        answer, reason = error, error.hidden
        if not reason and options.has_example:
            # A forward that is watched may show what fx does not record.
            unknown, reason = error, f"{str(error).partition('. ')[0]} that fx records."
    if not reason or "hooks" not in available_backends():
        if isinstance(answer, Exception):
            raise answer
        return answer
    try:
        answer = ask(load_backend("hooks"), model)
    except NodeNotFoundError as error:
        if unknown is not None:
            raise unknown from None
        # A name that fx lists and has recorded wrongly is none of the real forward. Without an example
        # fx listed nothing, and why is beside the point.
        is_listed = options.has_example and isinstance(answer, Exception)
        raise error from (answer.with_traceback(None) if is_listed else None)
    reason = reason.partition(" Ways out: ")[0]
    message = f"fx cannot serve this request, the hooks backend does. {reason}"
    warn(message, FallbackWarning)
    return answer


def make_requests(both: Any, train: Any, evaluate: Any) -> dict[str, dict[Any, str | None]]:
    """Check the three forms of a request, and return one request for each mode."""
    if both is not None:
        if train is not None or evaluate is not None:
            raise ValueError(
                "return_nodes is for both modes: pass it alone, or train_return_nodes and "
                f"eval_return_nodes without it (got return_nodes={both!r} as well)"
            )
        request = normalize(both)
        return {"train": request, "eval": request}
    if train is None and evaluate is None:
        raise ValueError("nothing to extract: pass return_nodes, for example ['layer4']")
    if train is None or evaluate is None:
        missing = "train_return_nodes" if train is None else "eval_return_nodes"
        raise ValueError(
            f"train_return_nodes and eval_return_nodes go together; {missing} is missing"
        )
    return {
        "train": normalize(train, "train_return_nodes"),
        "eval": normalize(evaluate, "eval_return_nodes"),
    }


def make_options(
    tracer_kwargs: Mapping[str, Any] | None,
    concrete_args: Mapping[str, Any] | None,
    example_args: Any = None,
    example_kwargs: Any = None,
) -> Options:
    """Check what the user said besides the model and the request."""
    if tracer_kwargs is not None and not isinstance(tracer_kwargs, Mapping):
        raise TypeError(f"tracer_kwargs must be a dict, not {tracer_kwargs!r}")
    given = dict(tracer_kwargs or {})
    unknown = [key for key in given if key not in _TRACER_KEYS]
    if unknown:
        raise TypeError(
            f"tracer_kwargs has no {unknown[0]!r}; it takes {', '.join(map(repr, _TRACER_KEYS))}"
        )
    values: dict[str, Any] = {key: _as_tuple(key, given[key]) for key in given}
    for leaf in values.get("leaf_modules", ()):
        if not isinstance(leaf, nn.Module) and not (
            isinstance(leaf, type) and issubclass(leaf, nn.Module)
        ):
            raise TypeError(f"leaf_modules takes module types and instances, not {leaf!r}")
    for function in values.get("autowrap_functions", ()):
        if not callable(function):
            raise TypeError(f"autowrap_functions takes functions, not {function!r}")
    for module in values.get("autowrap_modules", ()):
        if not isinstance(module, types.ModuleType):
            raise TypeError(f"autowrap_modules takes Python modules, not {module!r}")
    if not isinstance(example_args, (tuple, list, type(None))):
        kind = type(example_args).__name__
        raise TypeError(f"example_args must be a tuple of arguments, not a {kind}: pass (x,)")
    if not isinstance(example_kwargs, (Mapping, type(None))):
        kind = type(example_kwargs).__name__
        raise TypeError(f"example_kwargs must be a dict of argument names, not a {kind}")
    if concrete_args is not None and not isinstance(concrete_args, Mapping):
        raise TypeError(f"concrete_args must be a dict of argument names, not {concrete_args!r}")
    return Options(
        **values,
        concrete_args=dict(concrete_args or {}),
        example_args=None if example_args is None else tuple(example_args),
        example_kwargs=None if example_kwargs is None else dict(example_kwargs),
    )


def _as_tuple(key: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Iterable) or isinstance(value, (str, nn.Module)):
        raise TypeError(f"tracer_kwargs[{key!r}] must be a list, not {value!r}")
    return tuple(value)
