"""Which real tensors of a trace may have other values in the next call, and what must not be asked of them.

Those that the model keeps, those that were drawn, and what was computed of these or written with a
stand-in. Memory counts, not tensors: a view is as volatile as what it is a view of.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import fx, nn

from .. import _compat
from ..inplace import effect_of
from ..inspecting.containers import contains, instances_in
from ..inspecting.whose import called_by_model
from ..modules import ModuleTree
from .identity import is_compared_next
from .sizes import Sizes
from .texts import TEXT, makes_a_text

__all__ = ["ASSIGNED", "GENERATOR", "LOOKS_AT_VALUE", "Volatile"]

LOOKS_AT_VALUE = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __complex__ "
    "__contains__ is_nonzero equal allclose".split()
)
ASSIGNED = "assignment to an attribute of a tensor cannot be recorded"
GENERATOR = "the forward draws from a torch.Generator of its own, which a graph cannot hold"

_ESCAPES = frozenset("__dlpack__ __array__ numpy apply_ map_ map2_".split())
_OF_KIND = frozenset({"dtype", "device"})
_SWITCHED = frozenset({"requires_grad", "grad", "grad_fn", "is_leaf"})
_TEXTS = frozenset({"__repr__", "__format__"})
_LOOKED_AT = (
    "{}() looks at the value of a buffer, a parameter or a random number, or at what is computed of "
    "these or of the inputs, which may be another one in the next call"
)
_UNSEEN = (
    "the forward runs {} in a way that no graph can record (compiled code, a transform of torch.func, a "
    "tensor made of another by its class), with a tensor whose value may be another one in the next call"
)
_ESCAPED = "the forward leaves torch by {}(), where a graph does not follow"
_TRANSFORMED = (
    "the forward runs a transform of torch.func, which no graph can record, on real tensors"
)
_COMPARED = "the forward compares .{} of a tensor of the model, which .to() may change"
_FROZEN = (
    "the forward asks for .{} of a tensor that the model keeps or that was written, which may be "
    "another one in the next call"
)


class Volatile:
    """The volatile tensors of one trace.

    Args:
        tree: the modules of the model.
        made: ids of the tensors that were made by what is recorded; may grow.

    """

    def __init__(self, tree: ModuleTree, made: Set[int]) -> None:
        self._tree = tree
        self._made = made
        self._storages: set[int] = set()
        self.sizes = Sizes()

    def among(self, *values: Any) -> list[int]:
        """Return the ids of the volatile tensors in these values."""
        return [id(tensor) for tensor in instances_in(torch.Tensor, *values) if self._holds(tensor)]

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count what is in the memory of these tensors as volatile from now on."""
        self._storages.update(map(_compat.storage_id, tensors))

    def _holds(self, tensor: torch.Tensor) -> bool:
        if id(tensor) not in self._made and id(tensor) in self._tree.tensor_names:
            return True
        return bool(self._storages) and _compat.storage_id(tensor) in self._storages

    def add_affected(
        self, node: fx.Node, module: nn.Module | None, tensors: Mapping[fx.Node, torch.Tensor]
    ) -> None:
        """Add what a node writes, or is a view of, and that is recorded without it.

        Args:
            node: it.
            module: the module that it calls, if any.
            tensors: the real tensors by their nodes.

        """
        if tensors.keys().isdisjoint(node.all_input_nodes):
            return
        effect = effect_of(node, module)
        affected = [*effect.writes, *effect.shares]
        self.add(tensors[node] for node in affected if node in tensors)

    # -- questions ------------------------------------------------------------------------------

    def why_not(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        frame: types.FrameType,
        volatile: list[int],
    ) -> str | None:
        """Name the reason why a torch function must not be run on real tensors, if there is one.

        Args:
            func: the function.
            args: its arguments.
            kwargs: its keyword arguments.
            frame: who calls it.
            volatile: the ids of the volatile tensors among the arguments.

        """
        name = getattr(func, "__name__", "")
        if contains(torch.Generator, args, kwargs):
            return GENERATOR
        if name == "__set__":
            return ASSIGNED
        if volatile and name in LOOKS_AT_VALUE:
            return _LOOKED_AT.format(name)
        if name in _ESCAPES:
            return _ESCAPED.format(name)
        if _compat.functorch_level() is not None:
            return _TRANSFORMED
        asked = func.__self__.__name__ if name == "__get__" else name  # type: ignore[attr-defined]
        reason = _why_not_ask(asked, args, frame) if volatile else None
        return reason or self.sizes.why_not(asked, args, kwargs, volatile)

    def why_not_unseen(
        self, func: Any, args: Any, kwargs: Any, known: Iterable[torch.Tensor]
    ) -> str | None:
        """Name the reason why an operation that is not recorded must not be run, if there is one.

        Args:
            func: the operator.
            args: its arguments.
            kwargs: its keyword arguments.
            known: the tensors that have a node.

        """
        tensors = list(instances_in(torch.Tensor, args, kwargs))
        if func._schema.is_mutable:
            storages = set(map(_compat.storage_id, tensors))
            others = (*map(_compat.storage_id, known), *self._tree.storages)
            if not storages.isdisjoint(others):
                return _UNSEEN.format(func)
        if any(map(self._holds, tensors)) or _compat.is_random(func):
            return _UNSEEN.format(func)
        return None


def _why_not_ask(asked: str, args: Any, frame: types.FrameType) -> str | None:
    """Name the reason why this must not be asked of ``args[0]``, which may change, if there is one."""
    if asked in _TEXTS:
        return TEXT if makes_a_text(frame) else None
    if not called_by_model(frame):
        return None
    if asked in _SWITCHED:
        return _FROZEN.format(asked)
    if asked == "type" and len(args) == 1:
        return _COMPARED.format("type()")
    if asked in _OF_KIND and is_compared_next(frame):
        return _COMPARED.format(asked)
    return None
