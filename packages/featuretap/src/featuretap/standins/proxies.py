"""Stand-ins that keep in-place statements in place.

Plain :class:`torch.fx.Proxy` turns ``x += y`` into ``x = x + y``, so that other names of the same
tensor keep the old value, and has no ``x[i] = v`` at all.
"""

from __future__ import annotations

import operator
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx, nn

from .. import _compat
from ..facts import CHANGE_IN_PLACE
from ..inspecting.whose import called_by_model
from ..names.operations import is_call
from ..naming import AUGMENTED
from .asked_types import answer_for
from .asking import is_unclear, mentions_legacy_types, who_asks
from .identity import is_asked_of_next
from .likeness import FLAGS, TENSOR_ATTRIBUTES, attribute_kind, kind_of
from .texts import TEXT, makes_a_text

__all__ = ["FeatureProxy", "is_overtaken", "known_kind", "node_of"]

# Of a tensor, these are one object for a value, or ``None``.
_COMPARED = frozenset("dtype layout device grad _base names".split()) | FLAGS
_MAY_BE_NONE = frozenset("grad _base".split())
# Told by the history of a tensor, which is another one in a graph.
_OF_REAL_TENSORS = frozenset("grad_fn _version".split())
# What operations in place may change after it was read.
_CHANGED_IN_PLACE = frozenset("shape ndim requires_grad is_leaf".split())
_OWN_ATTRIBUTES = frozenset({"tracer", "node", "root", "attr", "_node"})


def _refusal(proxy: fx.Proxy, reason: str) -> Exception:
    """Let the tracer make the error: it remembers it, in case the model swallows it."""
    tracer: Any = proxy.tracer
    error: Exception = tracer.refusal(reason)
    return error


def known_kind(proxy: fx.Proxy, question: str = "what kind of object a value is") -> type:
    """Return the type of what ``proxy`` stands for; an error if that is not certain."""
    kind = _kind(proxy)
    if kind is None:
        raise _refusal(proxy, f"the forward asks {question}, which is not certain when tracing")
    return kind


def _kind(proxy: fx.Proxy) -> type | None:
    tracer: Any = proxy.tracer
    modules = tracer.recording.tree.paths
    if not isinstance(proxy, FeatureAttribute):
        return kind_of(proxy.node, modules)
    owner = kind_of(proxy.root.node, modules)
    return attribute_kind(proxy.attr) if owner in (torch.Tensor, nn.Parameter) else None


def _is_surely_a_tensor(proxy: fx.Proxy) -> bool:
    """Say whether ``proxy`` stands for a tensor that some operation made: inputs may be anything."""
    origin = proxy.root if isinstance(proxy, FeatureAttribute) else proxy
    return origin.node.op != "placeholder" and _kind(proxy) is torch.Tensor


answer_for(fx.Proxy, known_kind)


class FeatureProxy(fx.Proxy):
    """A Proxy that keeps statements in place, and that answers, or refuses, what code asks of a tensor.

    There is no ``__index__``: torch's own argument parser tries it before it records a call such as
    ``torch.zeros(sizes)``, and Python refuses a stand-in as an index without it.
    """

    # A tensor cannot be called, and ``collections.abc.Callable`` looks here.
    __call__ = None  # type: ignore[assignment]

    def __getattr__(self, k: str) -> Any:
        if k in _compat.PARAMETER_MARKS:
            raise AttributeError(k)
        node = vars(self).get("node")
        if node is not None and node.op == "get_attr":
            kept = _kept_by_parameter(self, node)
            if k in kept:
                return kept[k]
        frame = sys._getframe(1)
        if (
            called_by_model(frame)
            # Torch's own argument parser asks, too, on behalf of the frame that calls it.
            and not {"hasattr", "getattr"}.isdisjoint(frame.f_code.co_names)
            and is_call(frame)
            and not k.startswith("__")
            and not hasattr(known_kind(self, f"whether a value has .{k}"), k)
        ):
            raise AttributeError(k)
        if not hasattr(torch.Tensor, k) and _is_surely_a_tensor(self):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        if k in _OF_REAL_TENSORS and called_by_model(frame):
            raise _refusal(self, f"the forward looks at .{k}, which no stand-in has")
        if (
            k in _COMPARED
            and called_by_model(frame)
            and is_asked_of_next(frame, may_be_none=k in _MAY_BE_NONE)
        ):
            raise _refusal(self, f"the forward compares .{k} of a value with 'is'")
        attribute = FeatureAttribute(self, k)
        if k in _CHANGED_IN_PLACE:
            tracer: Any = self.tracer
            tracer.read_later.append(weakref.ref(attribute))
        if k in TENSOR_ATTRIBUTES and called_by_model(frame):
            # A tensor of its own from now on, unlike a size, which stays the same until it is used.
            _ = attribute.node
        return attribute

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The type that ``isinstance`` sees: for the forward, that of the value."""
        frame = who_asks(sys._getframe(1))
        if frame is None:
            return type(self)
        if is_unclear(frame):
            raise _refusal(self, "the forward asks for a type, or calls torch, by what has no name")
        if mentions_legacy_types(frame):
            raise _refusal(self, "the forward asks for a type such as torch.FloatTensor")
        return known_kind(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN_ATTRIBUTES:
            raise _refusal(self, f"assignment to .{name} of a tensor cannot be recorded")
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        raise _refusal(self, "len() of a tensor or size cannot be known when tracing")

    def __int__(self) -> int:
        raise _refusal(self, "int() of a tensor or size cannot be known when tracing")

    def __float__(self) -> float:
        raise _refusal(self, "float() of a tensor or size cannot be known when tracing")

    def __hash__(self) -> int:
        # The hash of a stand-in would be found in no set, dict or cache: a branch taken silently.
        raise _refusal(self, "a tensor or size is used as a key, or looked up in a set")

    def __pow__(self, power: Any, modulo: Any = None) -> fx.Proxy:
        # A graph would write ``pow(n, 2, 5)`` as ``n ** 2``.
        target, args = (operator.pow, ()) if modulo is None else (pow, (modulo,))
        return self.tracer.create_proxy("call_function", target, (self, power, *args), {})

    def __abs__(self) -> fx.Proxy:  # a Proxy of torch 2.0 has none
        return self.tracer.create_proxy("call_function", operator.abs, (self,), {})

    def __round__(self, *digits: int) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", round, (self, *digits), {})

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def __copy__(self) -> NoReturn:
        raise _refusal(
            self, "the forward copies a value with Python's copy; clone() can be recorded"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        _check_text(self, sys._getframe(1))
        return super().__repr__()

    def __format__(self, specification: str) -> str:
        _check_text(self, sys._getframe(1))
        return super().__repr__()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _check_text(proxy: fx.Proxy, frame: types.FrameType) -> None:
    """Refuse that ``frame`` makes a text of a stand-in, unless that is for people alone."""
    if called_by_model(frame) and makes_a_text(frame):
        raise _refusal(proxy, TEXT)


def is_overtaken(target: Any, attributes: list[weakref.ref[fx.Proxy]]) -> bool:
    """Say whether an operation changes in place what was read of tensors and is not recorded yet.

    An attribute is recorded where it is used, and would be read there.
    """
    if not isinstance(target, str) or target not in CHANGE_IN_PLACE:
        return False
    alive = (attribute() for attribute in attributes)
    return any(found is not None and vars(found)["_node"] is None for found in alive)


def _kept_by_parameter(proxy: FeatureProxy, node: fx.Node) -> dict[str, Any]:
    """Return the Python attributes that the user gave a parameter, which no tensor computes."""
    tracer: Any = proxy.tracer
    parameter = tracer.recording.tree.parameters.get(str(node.target))
    return {} if parameter is None else vars(parameter)


class FeatureAttribute(FeatureProxy, fx.proxy.Attribute):
    """An attribute of a stand-in, recorded when it is used as a value."""

    __call__ = fx.proxy.Attribute.__call__  # type: ignore[assignment]

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """What records it. A module that used it first may have been given up, with all its nodes."""
        if self._node is not None and _compat.is_erased(self._node):
            self._node = None
        node: fx.Node = fx.proxy.Attribute.node.fget(self)  # type: ignore[attr-defined]
        return node


def node_of(proxy: fx.Proxy) -> fx.Node:
    """Return the node of a stand-in that an operation takes.

    Not of a flag: the real forward has ``True`` or ``False``, which nobody knows again in an operation.
    """
    if isinstance(proxy, FeatureAttribute) and attribute_kind(proxy.attr) is bool:
        raise _refusal(proxy, f"the forward hands on .{proxy.attr} of a value, true or false")
    return proxy.node


def _augmented(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    function = getattr(operator, name)

    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    method.__name__ = f"__{name}__"
    return method


for _name in AUGMENTED:
    setattr(FeatureProxy, f"__{_name}__", _augmented(_name))
