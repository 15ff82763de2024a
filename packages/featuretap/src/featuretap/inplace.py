"""What an operation writes, and whose storage its result may share.

The facts come from torch's own operator schemas, where each argument and result carries an alias
annotation. Composite operators whose schema is silent about an alias, and the modules and
functions written in Python, are told apart by the short tables below. Whatever is unknown is
taken to write and to share everything it is given: a needless copy is cheap, a wrong value is not.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from . import _compat

__all__ = [
    "NO_EFFECT",
    "Effect",
    "StorageClasses",
    "effect_of",
    "leaves_trace",
    "may_draw",
    "written_arguments",
]

# Results that may be the argument itself, or a view of it, though the aten schema does not say so.
_SCHEMA_IS_SILENT = frozenset(
    "dropout alpha_dropout feature_dropout feature_alpha_dropout einsum meshgrid atleast_1d "
    "atleast_2d atleast_3d broadcast_tensors type_as cartesian_prod float_power pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle pad align_tensors __getitem__".split()
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
_VIEWS_OF_ALL = frozenset("broadcast_tensors meshgrid align_tensors cartesian_prod set_".split())
_METADATA = frozenset(
    "shape dtype device ndim layout requires_grad is_cuda is_meta itemsize".split()
)
# Functions of torch.nn.functional without an aten operator of their name that return new storage.
_FRESH_FUNCTIONS = frozenset(
    "interpolate upsample max_pool1d max_pool2d max_pool3d fractional_max_pool2d lp_pool1d "
    "lp_pool2d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d softmin hardswish "
    "silu mish gelu relu6 hardtanh elu selu celu leaky_relu rrelu threshold softsign "
    "tanhshrink normalize local_response_norm multi_head_attention_forward gumbel_softmax "
    "unfold one_hot cross_entropy nll_loss mse_loss l1_loss".split()
)
_FRESH_MODULES: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Upsample,
    nn.Threshold,
    nn.ReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.ReLU6,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GLU,
    nn.GELU,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Softplus,
    nn.PReLU,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Softmin,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
)
# Normalisations that, while training, write the running statistics they are given.
_STATISTICS = (nn.functional.batch_norm,)
# Code known to write no argument without saying so (read in torchvision 0.15 to 0.29).
_TRUSTED = (
    "torch.",
    "torchvision.ops.",
    "torchvision.models.swin_transformer.",
    "math",
    "_operator",
    "builtins",
)
_RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d)


class Effect(NamedTuple):
    """What running a node does besides computing its own value."""

    writes: tuple[Any, ...]
    """Arguments whose storage it may write; a path stands for the tensors of a module."""
    shares: tuple[Any, ...]
    """Arguments whose storage its result may share; a path as above."""


NO_EFFECT = Effect((), ())


class _Facts(NamedTuple):
    writes_first: bool
    shares: bool
    trusted: bool
    random: bool


def written_arguments(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the arguments that a call of a function or tensor method writes."""
    written = [kwargs["out"]] if kwargs.get("out") is not None else []
    if args and (_facts(target).writes_first or _is_in_place(target, args, kwargs)):
        written.append(args[0])
    if target is nn.functional.embedding and kwargs.get("max_norm") is not None:
        written.append(args[1])
    return list(_flat(written))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def effect_of(node: fx.Node, module: nn.Module | None) -> Effect:
    """Say what running ``node`` writes and shares; ``module`` is the one that it calls, if any."""
    if node.op == "call_module" and module is not None:
        return _effect_of_module(node, module)
    if node.op not in ("call_function", "call_method"):
        return NO_EFFECT
    facts = _facts(node.target)
    inputs = tuple(node.all_input_nodes)
    if not facts.trusted:
        return Effect(inputs, inputs)
    written = tuple(written_arguments(node.target, node.args, node.kwargs))
    if node.target in _STATISTICS and _argument(node.target, node.args, node.kwargs, "training"):
        written += tuple(
            _argument(node.target, node.args, node.kwargs, name)
            for name in ("running_mean", "running_var")
        )
    if node.target in (operator.add, operator.mul) and _holds_sequence(node.args):
        return Effect(written, inputs)
    # What writes an argument returns it.
    return Effect(written, (_sharing_inputs(node, inputs) if facts.shares else ()) + written)


def leaves_trace(
    node: fx.Node, module: nn.Module | None, training: Callable[[nn.Module], bool]
) -> bool:
    """Say whether later nodes would miss ``node``: it draws random numbers or moves statistics.

    Args:
        node: the node.
        module: the module that it calls, if any.
        training: the flag of each module in the mode at hand.

    """
    if node.op == "call_module" and module is not None:
        if not _is_known(module) and training(module):
            return True
        return any(_leaves_trace(part) for part in module.modules() if training(part))
    if node.op not in ("call_function", "call_method"):
        return False
    return _facts(node.target).random and _is_on(node.target, node.args, node.kwargs)


def may_draw(target: str | Callable[..., Any]) -> bool:
    """Say whether a function or tensor method may draw random numbers."""
    return _facts(target).random


def _sharing_inputs(node: fx.Node, inputs: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    """Of an operation of torch that makes a view, the inputs that it may be a view of."""
    first = node.args[0] if node.args else None
    if node.target is getattr and node.args[1] in _METADATA:
        return ()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if isinstance(first, fx.Node) and name not in _VIEWS_OF_ALL:
        return (first,)
    return inputs


def _effect_of_module(node: fx.Node, module: nn.Module) -> Effect:
    inputs = tuple(node.all_input_nodes)
    # The module's own tensors, which its result may share and its next call may write.
    state = str(node.target)
    if not _is_known(module):
        return Effect((*inputs, state), (*inputs, state))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return Effect((f"{state}.weight",), ())
    if getattr(module, "inplace", False):
        return Effect(inputs[:1], inputs[:1])
    return NO_EFFECT if isinstance(module, _FRESH_MODULES) else Effect((), inputs)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules", "torch.ao.nn"))


def _leaves_trace(module: nn.Module) -> bool:
    """Say whether a module in train mode draws random numbers or moves its statistics."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    dropout = getattr(module, "dropout", 0.0)
    return isinstance(module, _RANDOM_MODULES) or (isinstance(dropout, float) and dropout > 0.0)


@cache
def _facts(target: str | Callable[..., Any]) -> _Facts:
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    origin = "torch." if isinstance(target, str) else _origin(target)
    trusted = origin.startswith(_TRUSTED)
    if origin == "_operator":
        in_place = name == "setitem" or (name[0] == "i" and f"__{name}__" in _IN_PLACE_MAGIC)
        return _Facts(in_place, in_place or name == "getitem", True, False)
    if name.startswith("__"):
        in_place = name in _IN_PLACE_MAGIC or name == "__setitem__"
        return _Facts(in_place, in_place or name in ("__getitem__", "__iter__"), True, False)
    random = _compat.draws_random_numbers(name) or "dropout" in name or name in _DRAWS
    random = random or origin == "torch.nn.init."
    in_place = name.endswith("_") or name in _CONTAINER_WRITES
    schemas = _compat.aten_schemas(name)
    if in_place or not schemas or name in _SCHEMA_IS_SILENT:
        fresh = name in _FRESH_FUNCTIONS and origin.startswith("torch.")
        return _Facts(in_place, not fresh, trusted, random)
    shares = any(
        result.alias_info is not None and not result.alias_info.is_write
        for schema in schemas
        for result in schema.returns
    )
    return _Facts(False, shares, trusted, random)


_IN_PLACE_MAGIC = frozenset(
    f"__{name}__"
    for name in "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift".split()
)


def _origin(target: Callable[..., Any]) -> str:
    module = getattr(target, "__module__", None) or ""
    if module == "" and getattr(target, "__name__", "") in dir(torch):
        return "torch."
    return module if module in ("_operator", "builtins", "math") else f"{module}."


@cache
def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def _argument(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> Any:
    if name in kwargs:
        return kwargs[name]
    signature = None if isinstance(target, str) else _signature(target)
    if signature is None or name not in signature.parameters:
        return None
    position = list(signature.parameters).index(name)
    return args[position] if position < len(args) else signature.parameters[name].default


def _is_in_place(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    return _argument(target, args, kwargs, "inplace") not in (None, False)


def _is_on(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether a function that can draw random numbers does so in this call."""
    if _argument(target, args, kwargs, "training") is False:
        return False
    return _argument(target, args, kwargs, "dropout_p") not in (0, 0.0)


def _holds_sequence(args: Iterable[Any]) -> bool:
    return any(isinstance(arg, (tuple, list)) for arg in args)


class StorageClasses:
    """Which nodes may share storage, as disjoint sets (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[Any, Any] = {}

    def of(self, node: Any) -> Any:
        """Return the representative of the set that ``node`` is in."""
        parent = self._parent
        while parent.setdefault(node, node) is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def join(self, a: Any, b: Any) -> None:
        """Let ``a`` and ``b`` share storage from now on."""
        self._parent[self.of(a)] = self.of(b)
