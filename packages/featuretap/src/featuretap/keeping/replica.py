"""A copy of a model to run in its place, so that another thread that runs the model notices nothing."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from weakref import ReferenceType

import torch
from torch import nn

from .._compat import is_compiled_in_place
from ..backends import Options
from ..inspecting.looking import is_a
from ..inspecting.reading import forward_of, functions_of, variables_of
from .content import HOOKS
from .held import is_opened, parts_of
from .outside import tensors_outside
from .put_back import HookKey, without_own_wrappers

__all__ = ["Replica", "replica_of"]

# How deep what a function finds outside of itself is searched for modules.
_DEPTH = 3
# Another thread may put hooks on a module just when it is copied.
_ATTEMPTS = 3


class Replica(NamedTuple):
    """A model, and others that run its modules, copied together.

    Parameters are new ones in the memory of the model's, all else is copied.

    Attributes:
        model: the copy of the model.
        others: the copies of the others.
        made: what was copied, by ``id`` -> the copy.

    """

    model: nn.Module
    others: tuple[nn.Module, ...]
    made: dict[int, Any]

    def options(self, options: Options) -> Options:
        """Return what the user said of the model, said of the copy."""
        leaves = tuple(self.made.get(id(leaf), leaf) for leaf in options.leaf_modules)
        return replace(options, leaf_modules=leaves)


def replica_of(model: nn.Module, *others: nn.Module) -> Replica | None:
    """Copy ``model``, and with it ``others`` that run its modules; ``None`` if that is not safe.

    It is not where a copy might run another forward: where some module says itself how it is copied, is
    compiled or scripted, or where its code finds modules of the model in other ways than by its attributes.
    """
    modules = list(model.modules())
    if any(map(_is_particular, modules)):
        return None
    for _ in range(_ATTEMPTS):
        made: dict[int, Any] = {}
        with suppress(Exception):  # what nobody can copy: a lock, a tensor with a history
            made.update((id(p), _in_the_same_memory(p)) for p in model.parameters())
            # What lies outside of the modules is no part of them.
            made.update((id(t), t) for t in tensors_outside(map(forward_of, modules)))
            copies = [copy.deepcopy(module, made) for module in (model, *others)]
            for module in copies[0].modules():
                _let_nobody_watch(module)
            is_whole = _are_alike(modules, list(copies[0].modules()))
            return Replica(copies[0], tuple(copies[1:]), made) if is_whole else None
    return None


def _is_particular(module: nn.Module) -> bool:
    kind: Any = type(module)
    own = getattr(kind, "__deepcopy__", None)
    return (
        isinstance(module, torch.jit.ScriptModule)
        or is_compiled_in_place(module)
        or (own is not None and own.__module__ != "torch.nn.utils.parametrize")
        or any(type(parameter) is not nn.Parameter for parameter in module.parameters(False))
    )


def _let_nobody_watch(module: nn.Module) -> None:
    """Take away what stands in a copy for an extractor that runs the module in another thread just now."""
    without_own_wrappers(vars(module))
    for name in HOOKS:
        registry = vars(module)[name]
        for key in [key for key in registry if type(key) is HookKey]:
            del registry[key]


def _in_the_same_memory(parameter: nn.Parameter) -> nn.Parameter:
    new = nn.Parameter(parameter.detach(), parameter.requires_grad)
    vars(new).update(vars(parameter))
    return new


def _are_alike(modules: list[nn.Module], copies: list[nn.Module]) -> bool:
    """Say whether copies are of the same classes as the modules, and know nothing of these."""
    originals = set(map(id, modules))
    if list(map(type, modules)) != list(map(type, copies)) or originals & set(map(id, copies)):
        return False
    seen: set[int] = set()
    return not any(
        id(value) in originals or id(getattr(value, "__self__", None)) in originals
        for module in copies
        for value in _flat(_around(module), _DEPTH, seen)
        if is_a(value, (nn.Module, types.MethodType))
    )


def _around(module: nn.Module) -> Iterator[Any]:
    """Yield what code that a call of ``module`` runs may find outside of the module."""
    held = list(_flat(vars(module).values(), _DEPTH, set()))
    functions = [getattr(value, "__func__", value) for value in held]
    own = filter(partial(is_a, kinds=types.FunctionType), functions)
    for function in (*functions_of(forward_of(module)), *own):
        yield from variables_of(function).values()
        yield from map(function.__globals__.get, function.__code__.co_names)
        yield from function.__defaults__ or ()
    yield from (value() for value in held if is_a(value, ReferenceType))


def _flat(values: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Any]:
    """Yield values, and what is in the containers and objects among them, each once."""
    for value in values:
        if id(value) in seen or is_a(value, types.ModuleType):
            continue
        seen.add(id(value))
        yield value
        if is_a(value, partial):
            yield from _flat((value.func, *value.args, *value.keywords.values()), depth, seen)
        elif depth and is_opened(value):
            yield from _flat(parts_of(value), depth - 1, seen)
