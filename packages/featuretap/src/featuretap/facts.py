"""What is known of a function or tensor method: what it writes, shares, and whether it draws.

The facts come from torch's own operator schemas, where each argument and result carries an alias
annotation. Composite operators whose schema is silent about an alias, and functions written in Python,
are told apart by the short tables below. Whatever is unknown is taken to write and to share
everything it is given: a needless copy is cheap, a wrong value is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch

from . import _compat
from .naming import AUGMENTED

__all__ = [
    "CHANGE_IN_PLACE",
    "Facts",
    "argument",
    "called_name",
    "facts_of",
    "may_draw",
    "returns_itself",
    "writes_others",
    "written_arguments",
]

# Results that may be the argument itself, or a view of it, though the aten schema does not say so.
_SCHEMA_IS_SILENT = frozenset(
    "dropout alpha_dropout feature_dropout feature_alpha_dropout einsum meshgrid atleast_1d "
    "atleast_2d atleast_3d broadcast_tensors type_as cartesian_prod float_power pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle pad align_tensors positive "
    "sum_to_size to_dense unsafe_chunk unsafe_split unsafe_split_with_sizes".split()
)
# Methods that change in place what a tensor says of itself besides its values.
CHANGE_IN_PLACE = frozenset(
    "t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ resize_ resize_as_ set_ as_strided_ "
    "requires_grad_ detach_".split()
)
# Methods of lists, dicts and sets, which an input or the output of a module may be.
_CONTAINER_WRITES = frozenset(
    "append extend insert remove pop reverse clear update setdefault popitem discard".split()
)
# Composite functions that draw random numbers, as their aten tags do not say.
_DRAWS = frozenset(
    "stochastic_depth drop_block2d drop_block3d gumbel_softmax fractional_max_pool2d "
    "fractional_max_pool3d fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices "
    "svd_lowrank pca_lowrank lobpcg".split()
)
# Functions of torch.nn.functional without an aten operator of their name that return new storage.
_FRESH_FUNCTIONS = frozenset(
    "interpolate upsample max_pool1d max_pool2d max_pool3d fractional_max_pool2d lp_pool1d "
    "lp_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d softmin hardswish "
    "silu mish gelu relu6 hardtanh elu selu celu leaky_relu rrelu threshold softsign "
    "tanhshrink normalize local_response_norm multi_head_attention_forward gumbel_softmax "
    "unfold one_hot cross_entropy nll_loss mse_loss l1_loss".split()
)
# While they train they write the running statistics that they are given, as no schema says.
_STATISTICS = ("running_mean", "running_var")
_MOVE_STATISTICS = frozenset(
    "batch_norm instance_norm native_batch_norm cudnn_batch_norm miopen_batch_norm "
    "_batch_norm_impl_index batch_norm_update_stats".split()
)
# Code known to write no argument without saying so (read in torchvision 0.15 to 0.29).
_TRUSTED = (
    "torch.",
    "torchvision.ops.",
    "torchvision.models.swin_transformer.",
    "math",
    "_operator",
    "builtins",
)


class Facts(NamedTuple):
    """What is known of a function or method.

    Attributes:
        writes: position and name of each argument that it always writes.
        writes_by_name: arguments that it writes where it is given them, which is by name alone.
        shares: whether its result may share storage with an argument.
        trusted: whether the facts are known; else it may write and share everything.
        random: whether it may draw random numbers.

    """

    writes: tuple[tuple[int, str], ...]
    shares: bool
    trusted: bool
    random: bool
    writes_by_name: tuple[str, ...] = ()


_FIRST = ((0, "self"),)


def written_arguments(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the arguments that a call of a function or tensor method writes."""
    written = [kwargs["out"]] if kwargs.get("out") is not None else []
    facts = facts_of(target)
    written += [kwargs[name] for name in facts.writes_by_name if name in kwargs]
    for position, name in facts.writes:
        if position < len(args):
            written.append(args[position])
        elif name in kwargs:
            written.append(kwargs[name])
        else:  # a function in Python has names of its own: ``torch.nn.init.zeros_(tensor=x)``
            own, _ = _parameters(target)
            written += [kwargs[given] for given in own[position : position + 1] if given in kwargs]
    name = called_name(target)
    if argument(target, args, kwargs, "inplace") not in (None, False):
        written += args[:1]
    if argument(target, args, kwargs, "max_norm") is not None:
        written.append(argument(target, args, kwargs, "weight"))
    if _is_of_statistics(name) and _trains(target, args, kwargs):
        written += [argument(target, args, kwargs, statistic) for statistic in _STATISTICS]
    return list(_flat(written))


@cache
def writes_others(target: str | Callable[..., Any]) -> bool:
    """Say whether a function or tensor method may write an argument besides its first and ``out``."""
    facts = facts_of(target)
    return bool(
        facts.writes_by_name
        or any(position > 0 for position, _ in facts.writes)
        or _is_of_statistics(called_name(target))
        or "max_norm" in _parameters(target)[0]
    )


def returns_itself(method: str) -> bool:
    """Say whether a tensor method returns the tensor that it is called on, of the same size."""
    if method in _IN_PLACE_MAGIC:
        return True
    return method.endswith("_") and not method.endswith("__") and method not in CHANGE_IN_PLACE


def may_draw(target: str | Callable[..., Any]) -> bool:
    """Say whether a function or tensor method may draw random numbers."""
    return facts_of(target).random


def argument(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> Any:
    """Return what a call passes as the argument called ``name``, or its default, or ``None``."""
    if name in kwargs:
        return kwargs[name]
    names, defaults = _parameters(target)
    if name not in names:
        return None
    position = names.index(name)
    return args[position] if position < len(args) else defaults[position]


@cache
def facts_of(target: str | Callable[..., Any]) -> Facts:
    """Return what is known of a function, or of the tensor method of this name."""
    name = called_name(target)
    own = _compat.own_schemas(target)
    if own:
        return _facts_of_schemas(own, _compat.draws_random_numbers(name.partition(".")[0]))
    origin = "torch." if isinstance(target, str) else _origin(target)
    if origin == "_operator" or name.startswith("__"):
        method = name if name.startswith("__") else f"__{name}__"
        in_place = method in _IN_PLACE_MAGIC or method == "__setitem__"
        shares = in_place or method in ("__getitem__", "__iter__", "__pos__")
        return Facts(_FIRST if in_place else (), shares, True, False)
    return _facts_of_name(name, origin)


def _facts_of_name(name: str, origin: str) -> Facts:
    trusted = origin.startswith(_TRUSTED)
    random = _compat.draws_random_numbers(name) or "dropout" in name or name in _DRAWS
    random = random or origin == "torch.nn.init."
    schemas = _compat.aten_schemas(name)
    if name.endswith("_") or name in _CONTAINER_WRITES:
        writes = _facts_of_schemas(schemas, random).writes if schemas else ()
        return Facts(writes or _FIRST, True, trusted, random)
    if not schemas or name in _SCHEMA_IS_SILENT:
        fresh = name in _FRESH_FUNCTIONS and origin.startswith("torch.")
        return Facts((), not fresh, trusted, random)
    return _facts_of_schemas(schemas, random)._replace(trusted=trusted)


def _facts_of_schemas(schemas: Iterable[Any], random: bool) -> Facts:
    """Read off what operators write and share; ``out=`` is seen in the call itself."""
    writes: dict[tuple[int, str], None] = {}
    by_name: dict[str, None] = {}
    shares = False
    for schema in schemas:
        for position, given in enumerate(schema.arguments):
            if given.alias_info is None or not given.alias_info.is_write:
                continue
            if not given.kwarg_only:
                writes[position, given.name] = None
            elif given.name != "out":
                by_name[given.name] = None
        shares |= any(result.alias_info is not None for result in schema.returns)
    return Facts(tuple(writes), shares or bool(writes), True, random, tuple(by_name))


def _is_of_statistics(name: str) -> bool:
    return name.partition(".")[0] in _MOVE_STATISTICS


def _trains(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Say whether a normalisation moves its statistics, unless it is told not to."""
    flags = (argument(target, args, kwargs, name) for name in ("training", "use_input_stats"))
    return False not in flags


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


_IN_PLACE_MAGIC = frozenset(f"__{name}__" for name in AUGMENTED)


def called_name(target: Any) -> str:
    """Return the name of a function, or the method that this is the name of."""
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _origin(target: Callable[..., Any]) -> str:
    module = getattr(target, "__module__", None) or ""
    if module == "" and called_name(target) in dir(torch):
        return "torch."
    return module if module in ("_operator", "builtins", "math") else f"{module}."


@cache
def _parameters(target: str | Callable[..., Any]) -> tuple[list[str], list[Any]]:
    """Return names and defaults of the parameters, as far as they are known."""
    if isinstance(target, str):
        return [], []
    own = _compat.own_schemas(target)
    if own:
        return [a.name for a in own[0].arguments], [a.default_value for a in own[0].arguments]
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        schemas = _compat.aten_schemas(called_name(target))
        arguments = schemas[0].arguments if schemas else ()
        return [a.name for a in arguments], [a.default_value for a in arguments]
    return [p.name for p in parameters], [
        None if p.default is p.empty else p.default for p in parameters
    ]
