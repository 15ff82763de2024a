"""A copy of a model to run in its place, so that another thread that runs the model notices nothing."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from weakref import ReferenceType

import torch
from torch import nn

from .._compat import is_compiled_in_place
from ..backends import Options
from ..inspecting.containers import CONTAINERS
from ..inspecting.looking import has_attributes, is_a
from ..inspecting.reading import (
    CachedFunction,
    Forward,
    forward_of,
    functions_of,
    names_in,
    variables_of,
)
from ..inspecting.slots import has_slots
from ..inspecting.whose import FEATURETAP, is_users, is_users_module
from .content import HOOKS
from .held import attributes, is_opened, parts_of
from .outside import tensors_outside
from .put_back import HookKey, without_own_wrappers

__all__ = ["Replica", "replica_of"]

# How much is looked at for modules of the model.
_MOST = 50_000
# Another thread may put hooks on a module just when it is copied.
_ATTEMPTS = 3


class Replica(NamedTuple):
    """A model, and others that run its modules, copied together.

    Parameters are new ones in the memory of the model's, all else is copied.

    Attributes:
        model: the copy of the model.
        others: the copies of the others.
        made: what was copied, by ``id`` -> the copy.
        original: the model, if this is a copy.

    """

    model: nn.Module
    others: tuple[nn.Module, ...]
    made: dict[int, Any]
    original: nn.Module | None = None

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
            return Replica(copies[0], tuple(copies[1:]), made, model) if is_whole else None
    return None


def _is_particular(module: nn.Module) -> bool:
    return (
        isinstance(module, torch.jit.ScriptModule)
        or is_compiled_in_place(module)
        or has_slots(module)
        or _copies_itself(type(module))
        or any(type(parameter) is not nn.Parameter for parameter in module.parameters(False))
    )


def _copies_itself(kind: type) -> bool:
    """Say whether a class says itself how its objects are copied; those of torch's layers do it well."""
    bases = (base for base in kind.__mro__ if is_users(base) or base.__module__.startswith(_GRAPHS))
    found = [vars(base)[name] for base in bases for name in _COPYING if name in vars(base)]
    return any(getattr(own, "__module__", "") != "torch.nn.utils.parametrize" for own in found)


# Modules that run a graph.
_GRAPHS = ("torch.fx", *FEATURETAP)
_COPYING = "__deepcopy__ __copy__ __reduce__ __reduce_ex__ __getstate__ __setstate__".split()


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
    """Say whether copies are of the same classes as the modules, and know nothing of what is theirs.

    That is the modules themselves, and the containers that they hold, which a hook may fill as well.
    """
    originals = {
        id(value) for m in modules for _, value in attributes(m) if is_a(value, CONTAINERS)
    }
    originals.update(map(id, modules))
    if list(map(type, modules)) != list(map(type, copies)) or originals & set(map(id, copies)):
        return False
    held = [value for module in copies for _, value in attributes(module)]
    if any(map(_copies_itself, _kinds_in(held))):
        return False
    hooks = [vars(module)[name] for module in copies for name in HOOKS]
    code = (value for forward in set(map(forward_of, copies)) for value in _mentioned(forward))
    return not _leads_to(originals, [*held, *filter(None, hooks), *code])


def _leads_to(originals: set[int], waiting: list[Any]) -> bool:
    """Say whether code that has these values may come to one of the originals, or that is unknown."""
    seen: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # kept, so that nothing else gets its id
        # Some caches go by the id of a module.
        if id(value) in originals or (type(value) is int and value in originals):
            return True
        # Nobody can look into the cache of a function, which may have been made for this model.
        if len(seen) > _MOST or (is_a(value, CachedFunction) and "<" in value.__qualname__):
            return True
        waiting += (found for found in _behind(value) if type(found) not in _LEAD_NOWHERE)
    return False


_LEAD_NOWHERE = frozenset({type(None), bool, float, complex, str, bytes})


def _kinds_in(values: list[Any]) -> set[type]:
    """Return the classes of objects of the user's in ``values``, of which copies were made."""
    waiting, seen = values.copy(), dict[int, Any]()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen and is_opened(value):
            seen[id(value)] = value
            waiting += parts_of(value)
    return {kind for kind in map(type, seen.values()) if is_users(kind)}


def _mentioned(forward: Forward) -> Iterator[Any]:
    """Yield what code that a forward runs may find elsewhere than in attributes of the module."""
    yield from functions_of(forward)
    for kind in filter(is_users, forward.kind.__mro__):
        yield from (vars(kind).get(name) for name in names_in(forward))


def _behind(value: Any) -> Iterator[Any]:
    """Yield what code that has ``value`` may come to."""
    if is_a(value, (types.ModuleType, nn.Module, torch.Tensor)):
        return
    if is_a(value, types.FunctionType):
        if is_users_module(value.__module__ or "__main__"):
            yield from variables_of(value).values()
            yield from map(value.__globals__.get, value.__code__.co_names)
            yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif is_a(value, type):
        held = vars(value).values() if is_users(value) else ()
        yield from (one for one in held if not is_a(one, _CODE))
    elif is_a(value, (types.MethodType, classmethod, staticmethod)):
        yield from (value.__func__, getattr(value, "__self__", None))
    elif is_a(value, property):
        yield value.fget
    elif is_a(value, CachedFunction):
        yield value.__wrapped__
    elif is_a(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif is_a(value, ContextVar):
        yield value.get(None)
    elif is_a(value, ReferenceType):
        yield value()
    else:
        if is_a(value, dict):
            yield from dict.keys(value)
        if is_users(type(value)):
            yield vars(type(value)).get("__call__")
        if is_opened(value) or has_attributes(value):
            yield from parts_of(value)


_CODE = (classmethod, staticmethod, property, type, types.FunctionType, ReferenceType)
