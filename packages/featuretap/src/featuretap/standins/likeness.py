"""What a stand-in answers when the forward asks what kind of object it is.

``isinstance(x, torch.Tensor)`` is a branch that the trace would take the wrong way: a Proxy is no
tensor. Python asks ``x.__class__`` for it, and ``hasattr`` asks for the attribute. So both are answered
as for the value that the stand-in stands for, where that is certain from the operation that makes it,
and refused where it is not.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import fx, nn

from .. import _compat
from ..facts import called_name
from ..graphs import meta_keys

__all__ = ["COMPARISONS", "FLAGS", "PARTS", "TENSOR_ATTRIBUTES", "attribute_kind", "kind_of"]

# Attributes of a tensor that are true or false.
FLAGS = frozenset(
    name
    for name in dir(torch.Tensor)
    if name in ("requires_grad", "retains_grad")
    or (name.startswith("is_") and not callable(getattr(torch.Tensor, name)))
)
_KINDS = {
    **dict.fromkeys(FLAGS, bool),
    "shape": torch.Size,
    "ndim": int,
    "device": torch.device,
    "dtype": torch.dtype,
}
_INTEGERS = frozenset(
    "dim ndimension numel nelement element_size storage_offset get_device".split()
)
TENSOR_ATTRIBUTES = frozenset("T mT H mH data grad real imag".split())
# Their results are no tensors, or depend on the arguments, and torch's schemas do not say so.
_UNSURE = frozenset(
    "atleast_1d atleast_2d atleast_3d broadcast_shapes broadcast_tensors const_data_ptr data_ptr "
    "dim_order eig eigh einsum is_shared lobpcg lstsq lu meshgrid module_load "
    "multi_head_attention_forward nonzero numpy pca_lowrank qr register_hook "
    "register_post_accumulate_grad_hook reinforce storage storage_type svd_lowrank tolist type unique "
    "unravel_index untyped_storage".split()
)
# As many tensors as there are items, or as a number says.
PARTS = frozenset(
    "unbind split chunk tensor_split hsplit vsplit dsplit split_with_sizes unsafe_split "
    "unsafe_chunk".split()
)
_ARITHMETIC = frozenset(
    getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow neg pos iadd isub imul itruediv ifloordiv".split()
)
COMPARISONS = frozenset(
    {operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne}
)
_RETURNSPARTS = (
    nn.RNNBase,
    nn.LSTMCell,
    nn.MultiheadAttention,
    nn.AdaptiveLogSoftmaxWithLoss,
)


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> type | None:
    """Return the type of what ``node`` stands for, ``None`` if that is not certain.

    Args:
        node: a node of a graph that is being recorded; inputs are taken to be tensors.
        modules: the modules by their paths.

    """
    # Kept, for the kind of ``x + self.identity(x)`` is twice that of ``x``, and so on.
    if meta_keys.KIND not in node.meta:
        node.meta[meta_keys.KIND] = _kind_of(node, modules)
    kind: type | None = node.meta[meta_keys.KIND]
    return kind


def _kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> type | None:
    if node.op == "placeholder":
        return torch.Tensor
    if node.op == "get_attr":
        return nn.Parameter
    if node.op == "call_module":
        module = modules.get(str(node.target))
        if module is None or not type(module).__module__.startswith("torch.nn.modules."):
            return None
        if isinstance(module, nn.Identity):
            given = node.args[0] if node.args else None
            return kind_of(given, modules) if isinstance(given, fx.Node) else None
        # Not through the attribute, which most have not: that is slow, and fx would see it.
        unsure = isinstance(module, _RETURNSPARTS) or vars(module).get("return_indices")
        return None if unsure else torch.Tensor
    if node.target is getattr:
        return attribute_kind(str(node.args[1]))
    if node.target is operator.getitem:
        return _item_kind(node, modules)
    if node.target in _ARITHMETIC or node.target in COMPARISONS:
        return _result_kind(node, modules)
    return _call_kind(node)


def attribute_kind(name: str) -> type | None:
    """Return the type of an attribute of a tensor, ``None`` if that is not certain."""
    return torch.Tensor if name in TENSOR_ATTRIBUTES else _KINDS.get(name)


def _call_kind(node: fx.Node) -> type | None:
    target, name = node.target, called_name(node.target)
    if name == "size":
        return torch.Size if len(node.args) + len(node.kwargs) == 1 else int
    if name in _INTEGERS:
        return int
    if name in PARTS:
        return tuple
    if node.kwargs.get("return_indices"):
        return None
    if name == "where" and len(node.args) + len(node.kwargs) == 1:
        return tuple
    is_torchs = isinstance(target, str) or getattr(target, "__module__", "") in _OF_TENSORS
    is_builtin = getattr(torch, name, None) is target or getattr(torch._C._nn, name, None) is target
    # A named tuple is called after what returns it: ``linalg_eigh``.
    is_unsure = name in _UNSURE or hasattr(torch.return_types, name) or _may_be_no_tensor(name)
    if not is_builtin and not isinstance(target, str):
        # Functions in Python that return the tensor alone of an operator that is called alike.
        is_unsure = is_unsure and name not in _FIRST_ALONE
    return torch.Tensor if (is_torchs or is_builtin) and not is_unsure else None


# Where functions are that return a tensor, if nothing here says otherwise.
_OF_TENSORS = (
    *("torch.nn.functional", "torch.functional", "torch._tensor", "torch._jit_internal"),
    *("torch.linalg", "torch.special", "torch.fft"),
)
_FIRST_ALONE = frozenset(
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d embedding_bag fractional_max_pool2d "
    "fractional_max_pool3d".split()
)


@functools.cache
def _may_be_no_tensor(name: str) -> bool:
    """Say whether an operator of this name, given a tensor, may return anything but one tensor."""
    if name.endswith("_with_indices"):
        return True
    schemas = [s for s in _compat.aten_schemas(name) if s.arguments and _is_tensor(s.arguments[0])]
    # With the condition alone ``where`` is a tuple, which was looked at before.
    return name != "where" and not all(
        len(schema.returns) == 1 and _is_tensor(schema.returns[0]) for schema in schemas
    )


def _is_tensor(argument: Any) -> bool:
    return str(argument.type) == "Tensor"


def _item_kind(node: fx.Node, modules: dict[str, nn.Module]) -> type | None:
    source, index = node.args
    if isinstance(source, fx.Node) and index == 0:
        module = modules.get(str(source.target)) if source.op == "call_module" else None
        if isinstance(module, _RETURNSPARTS):
            return torch.Tensor
    kind = kind_of(source, modules) if isinstance(source, fx.Node) else None
    if kind is torch.Size:
        return torch.Size if isinstance(index, slice) else int
    if kind is tuple:
        return tuple if isinstance(index, slice) else torch.Tensor
    return torch.Tensor if kind in (torch.Tensor, nn.Parameter) else None


def _result_kind(node: fx.Node, modules: dict[str, nn.Module]) -> type | None:
    kinds = [kind_of(a, modules) if isinstance(a, fx.Node) else type(a) for a in node.args]
    if any(kind in (torch.Tensor, nn.Parameter) for kind in kinds):
        return torch.Tensor
    if node.target in COMPARISONS:
        return None if None in kinds else bool
    if node.target is operator.pow and kinds == [int, int]:
        # With a negative exponent it is a float.
        exponent = node.args[1]
        return int if isinstance(exponent, int) and exponent >= 0 else None
    if all(kind in (int, float) for kind in kinds):
        return float if float in kinds or "truediv" in str(node.target) else int
    return None
