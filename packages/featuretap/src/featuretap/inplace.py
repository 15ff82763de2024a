"""What running a node writes, and whose storage its result may share.

What is known of functions is in :mod:`.facts`; modules are told apart by the short tables below.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import fx, nn

from .facts import argument, called_name, facts_of, written_arguments
from .inspecting.trace_left import may_leave_trace

__all__ = [
    "NO_EFFECT",
    "Effect",
    "StorageClasses",
    "effect_of",
    "is_known",
    "leaves_trace",
    "makes_new",
    "moves_in_training",
]

# What these return, or put into a container, is all that they are given.
_VIEWS_OF_ALL = frozenset(
    "broadcast_tensors meshgrid align_tensors cartesian_prod set_ "
    "append extend insert update setdefault".split()
)
_METADATA = frozenset(
    "shape dtype device ndim layout requires_grad is_cuda is_meta itemsize".split()
)
_OF_TORCH = ("torch.nn.modules", "torch.ao.nn")
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
_RANDOM_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d)


class Effect(NamedTuple):
    """What running a node does besides computing its own value."""

    writes: tuple[Any, ...]
    """Arguments whose storage it may write; a path stands for the tensors of a module."""
    shares: tuple[Any, ...]
    """Arguments whose storage its result may share; a path as above."""


NO_EFFECT = Effect((), ())


def effect_of(node: fx.Node, module: nn.Module | None) -> Effect:
    """Say what running ``node`` writes and shares; ``module`` is the one that it calls, if any."""
    if node.op == "call_module" and module is not None:
        return _effect_of_module(node, module)
    if node.op not in ("call_function", "call_method"):
        return NO_EFFECT
    facts = facts_of(node.target)
    inputs = tuple(node.all_input_nodes)
    if not facts.trusted:
        return Effect(inputs, inputs)
    written = tuple(written_arguments(node.target, node.args, node.kwargs))
    if node.target in (operator.add, operator.mul) and _holds_sequence(node.args):
        return Effect(written, inputs)
    if node.target is operator.setitem and _may_be_container(node.args[0]):
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
        # Most leaves have no parts, and ``modules()`` costs more than all the rest.
        parts = tuple(module.modules()) if module._modules else (module,)
        if not is_known(module) and (training(module) or any(map(may_leave_trace, parts))):
            return True
        return any(moves_in_training(part) for part in parts if training(part))
    if node.op not in ("call_function", "call_method"):
        return False
    facts = facts_of(node.target)
    if not (facts.trusted or isinstance(node.target, str)) and may_leave_trace(node.target):
        return True
    return facts.random and _is_on(node.target, node.args, node.kwargs)


def _sharing_inputs(node: fx.Node, inputs: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    """Of an operation of torch that makes a view, the inputs that it may be a view of."""
    first = node.args[0] if node.args else None
    if node.target is getattr and node.args[1] in _METADATA:
        return ()
    if isinstance(first, fx.Node) and called_name(node.target) not in _VIEWS_OF_ALL:
        return (first,)
    return inputs


def _effect_of_module(node: fx.Node, module: nn.Module) -> Effect:
    inputs = tuple(node.all_input_nodes)
    # The module's own tensors, which its result may share and its next call may write.
    state = str(node.target)
    if not is_known(module):
        return Effect((*inputs, state), (*inputs, state))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        return Effect((f"{state}.weight",), ())
    if getattr(module, "inplace", False):
        return Effect(inputs[:1], inputs[:1])
    return NO_EFFECT if makes_new(module) else Effect((), inputs)


def makes_new(module: nn.Module) -> bool:
    """Say whether what a module of torch returns is memory of its own."""
    is_torchs = type(module).__module__.startswith(_OF_TORCH)
    return (
        is_torchs and isinstance(module, _FRESH_MODULES) and not getattr(module, "inplace", False)
    )


def is_known(module: nn.Module) -> bool:
    """Say whether ``module`` runs torch's own code, and nothing else: no hook, no parametrization."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and type(module).__module__.startswith(_OF_TORCH)


def moves_in_training(module: nn.Module) -> bool:
    """Say whether a module in train mode draws random numbers or moves its statistics."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    dropout = vars(module).get("dropout", 0.0)
    return isinstance(module, _RANDOM_MODULES) or (isinstance(dropout, float) and dropout > 0.0)


def _is_on(
    target: str | Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether a function that can draw random numbers does so in this call."""
    if argument(target, args, kwargs, "training") is False:
        return False
    return argument(target, args, kwargs, "dropout_p") not in (0, 0.0)


def _may_be_container(value: Any) -> bool:
    """Say whether something that is assigned to may be a list or dict: an input, or the item of one."""
    while isinstance(value, fx.Node) and value.target is operator.getitem:
        value = value.args[0]
    return isinstance(value, fx.Node) and value.op in ("placeholder", "call_module")


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
