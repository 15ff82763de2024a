"""Copies of values, whatever holds the tensors in them."""

from __future__ import annotations

import copy
import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from .inspecting.containers import CONTAINERS, copied, empty_like, kind_of
from .inspecting.looking import attributes_of, has_attributes, is_a
from .inspecting.slots import slots_of
from .inspecting.whose import is_users
from .keeping.held import parts_of

__all__ = [
    "PLAIN",
    "clone_or_detach",
    "copy_arguments",
    "copy_from_region",
    "copy_value",
    "map_tensors",
    "tensors_of",
]

#: What holds no tensor.
PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, type, enum.Enum),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
# :func:`map_tensors`, given all but the value.
_Map: TypeAlias = Callable[..., Any]


def copy_value(value: Any) -> Any:
    """Copy each tensor in ``value``; containers are rebuilt, all else is kept.

    Differentiable, and bit for bit. Where ``torch.fx`` traces an extractor it is one node.
    """
    tracer = _tracer_of(value)
    if tracer is not None:
        return tracer.create_proxy("call_function", copy_value, (value,), {})
    return map_tensors(value, torch.Tensor.clone)


def copy_arguments(
    args: Iterable[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the tensors among the arguments of a call; one that is given twice is so in the copies."""
    made: dict[int, torch.Tensor] = {}

    def copy_once(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = tensor.clone()
        return made[id(tensor)]

    copied_args, copied_kwargs = map_tensors((tuple(args), dict(kwargs)), copy_once)
    return copied_args, copied_kwargs


def copy_from_region(value: Any) -> Any:
    """Copy like :func:`copy_value` in a forward that may have switched gradients off.

    Autograd does not let one look at a view that was made then, nor at a view of it, once its base
    is written.
    """
    tracer = _tracer_of(value)
    if tracer is not None:
        return tracer.create_proxy("call_function", copy_from_region, (value,), {})
    return map_tensors(value, clone_or_detach)


def _tracer_of(value: Any) -> Any:
    # Spelled out, for dynamo reads it, too, and that of torch 2.4 does not know ``filter``.
    if isinstance(value, fx.Proxy):
        return value.tracer
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            tracer = _tracer_of(item)
            if tracer is not None:
                return tracer
    return None


def clone_or_detach(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor; without its history, where autograd does not give that away."""
    try:
        new = tensor.clone()
    except RuntimeError:
        with torch.no_grad():
            new = tensor.clone()
    kind = type(tensor)
    if type(new) is kind or isinstance(tensor, nn.Parameter):
        return new
    # A class of the user's own is lost where torch functions are switched off.
    new = new.as_subclass(kind)
    vars(new).update(vars(tensor))
    return new


def map_tensors(
    value: Any,
    change: Callable[[torch.Tensor], torch.Tensor],
    is_kept: Callable[[Any], bool] = lambda value: True,
    made: dict[int, tuple[Any, Any]] | None = None,
) -> Any:
    """Rebuild ``value`` with ``change(tensor)`` in place of each tensor.

    Args:
        value: a tensor, or a container or plain object that may hold some.
        change: makes the new tensor.
        is_kept: says of an object that holds no tensor whether it stays itself.
        made: the objects that were rebuilt already, by ``id``, and what of them; filled. Objects may
            hold each other.

    """
    if isinstance(value, torch.Tensor):
        return change(value)
    made = {} if made is None else made
    mapped: _Map = partial(map_tensors, change=change, is_kept=is_kept, made=made)
    if isinstance(value, tuple) and type(value) is not torch.Size:
        items = list(map(mapped, value))
        if type(value) is tuple:
            return tuple(items)
        return type(value)(*items) if hasattr(value, "_fields") else _like(value, items)
    if type(value) is list:
        return list(map(mapped, value))
    if type(value) is dict:
        return {key: mapped(item) for key, item in value.items()}
    if isinstance(value, _LEAVES):
        return value
    if isinstance(value, (set, frozenset)):
        return type(value)(map(mapped, value))
    if id(value) in made:
        return made[id(value)][1]
    if isinstance(value, (list, deque, dict)) or is_dataclass(value):
        return _map_container(value, mapped, made)
    return _map_object(value, mapped, made, is_kept)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors that :func:`map_tensors` comes to; what objects share is looked into once."""
    return list(_tensors_in(value, set()))


def _tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if is_a(value, torch.Tensor):
        yield value
    elif not is_a(value, _LEAVES) and id(value) not in seen:
        seen.add(id(value))
        for item in _inside(value):
            yield from _tensors_in(item, seen)


def _inside(value: Any) -> Iterator[Any]:
    has_fields = is_dataclass(type(value))
    if not has_fields or is_a(value, (*CONTAINERS, tuple, frozenset)):
        yield from parts_of(value)
    if has_fields:
        yield from (getattr(value, field.name) for field in fields(value))


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_LEAVES = (*PLAIN, nn.Module, ModuleType, FunctionType, MethodType, BuiltinFunctionType)


def _like(value: Any, items: list[Any]) -> Any:
    """Return a tuple of the class of ``value``, which may be made of something else than its items."""
    kind = type(value)
    if not is_users(kind):
        return kind(items)
    new = tuple.__new__(kind, items)
    vars(new).update(vars(value))
    return new


def _map_container(value: Any, mapped: _Map, made: dict[int, tuple[Any, Any]]) -> Any:
    new = _shallow(value)
    made[id(value)] = value, new
    if new is value:
        return value
    if isinstance(new, dict):
        for key, item in copied(value).items():
            kind_of(new).__setitem__(new, key, mapped(item))
    elif isinstance(new, (list, deque)):
        kind_of(new).extend(new, list(map(mapped, parts_of(value))))
    for field in fields(value) if is_dataclass(value) else ():
        object.__setattr__(new, field.name, mapped(getattr(value, field.name)))
    return new


def _map_object(
    value: Any,
    mapped: _Map,
    made: dict[int, tuple[Any, Any]],
    is_kept: Callable[[Any], bool],
) -> Any:
    """Copy an object of the user's, if it holds a tensor somewhere or is not to be kept."""
    held = {**(attributes_of(value) if has_attributes(value) else {}), **slots_of(value)}
    has_tensors = next(_tensors_in(value, set()), None) is not None
    new = _shallow(value) if held and (has_tensors or not is_kept(value)) else value
    made[id(value)] = value, new
    if new is not value:
        for name, item in held.items():
            object.__setattr__(new, name, mapped(item))
    return new


def _shallow(value: Any) -> Any:
    """Copy an object without what it holds in items; one that nobody can copy is returned itself.

    Code of the user's own runs only where Python could not make the copy without it.
    """
    kind: Any = type(value)
    try:
        if isinstance(value, (list, dict, deque)):
            new = empty_like(value)
        elif not _is_made_by_object(kind):
            new = copy.copy(value)
        else:
            new = object.__new__(kind)
        if hasattr(new, "__dict__"):
            vars(new).update(vars(value))
    except Exception:  # what the user's own code raises
        return value
    return new if type(new) is kind else value


@cache
def _is_made_by_object(kind: type) -> bool:
    """Say whether a class and its bases are written in Python, so that it holds what Python knows."""
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
