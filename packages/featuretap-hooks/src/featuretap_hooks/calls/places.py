"""Where forwards look up the functions that are one node each, of those that some code mentions."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from featuretap._compat import functions_wrapped_for_fx
from featuretap.backends import Options
from featuretap.inspecting.looking import original_of
from featuretap.inspecting.reading import CachedFunction, forward_of, functions_of, kinds_of
from featuretap.inspecting.whose import is_users
from featuretap.modules import ModuleTree
from featuretap.naming import operation_name
from featuretap.standins.asking import ASKS_FOR_MODES
from featuretap.trace.wrapping import namespaces_of_modules

from .._compat import control_flow, is_compiled_function
from .patching import MISSING, Namespace, Place, methods_of, place_in, wrapper_of

__all__ = ["operations_at", "places"]


def places(tree: ModuleTree, options: Options, mentioned: Collection[str]) -> list[Namespace]:
    """Find where the forwards of a model look up functions that are one node each.

    Args:
        tree: the modules of the model.
        options: with functions and modules that the caller wants to be wrapped.
        mentioned: the names that code mentions which the forwards may come to.

    """
    modules, whole = _whole_functions(options, mentioned)
    globals_ = {id(vars(module)): vars(module) for module in modules}
    for module in tree.paths.values():
        namespace = getattr(module.forward, "__globals__", None)
        if namespace is not None:
            globals_[id(namespace)] = namespace
    found = list(functions_wrapped_for_fx())
    for namespace in globals_.values():
        found += _named(namespace, whole)
    classes = {
        kind for m in tree.paths.values() for kind in type(m).__mro__ if not _is_torchs(kind)
    }
    spaces = (*globals_.values(), *map(vars, tree.paths.values()), *map(methods_of, classes))
    for namespace in spaces:
        found += _compiled(namespace)
    for namespace in _namespaces(tree):
        found += _cached(namespace)
    # Most models call few of these, and exchanging the others would take as long as some layers.
    found = [(namespace, name) for namespace, name in found if name in mentioned]
    everywhere = {id(function) for function in options.autowrap_functions}
    if everywhere:
        for namespace in namespaces_of_modules():
            found += _named(namespace, everywhere)
    return [*_by_namespace(found), *map(_method, _UNSEEN & set(mentioned))]


def _whole_functions(
    options: Options, mentioned: Collection[str]
) -> tuple[list[types.ModuleType], set[int]]:
    """Return Python modules whose functions are looked for, and the ids of those that are one node."""
    operators = sys.modules.get("torchvision.ops")
    modules = [math, *([operators] if operators else []), *options.autowrap_modules]
    whole = {
        id(original_of(value))
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type)
    }
    control = [function for name, function in control_flow().items() if name in mentioned]
    whole.update(map(id, (*control, *ASKS_FOR_MODES.values())))
    if not ASKS_FOR_MODES.keys().isdisjoint(mentioned):
        modules.append(torch.overrides)
    if control:
        homes = dict.fromkeys(function.__module__ for function in control)
        modules += [torch, torch._higher_order_ops, *map(sys.modules.__getitem__, homes)]
    return modules, whole


def _by_namespace(found: Iterable[tuple[dict[str, Any], str]]) -> Iterator[Namespace]:
    names: dict[int, set[str]] = {}
    namespaces: dict[int, dict[str, Any]] = {}
    for namespace, name in found:
        namespaces[id(namespace)] = namespace
        names.setdefault(id(namespace), set()).add(name)
    for key, namespace in namespaces.items():
        yield Namespace(namespace, [place_in(namespace, name) for name in sorted(names[key])])


def operations_at(found: Iterable[Namespace]) -> set[str]:
    """Return what the functions at these places are called."""
    wrappers = (place.wrapper for namespace in found for place in namespace.places)
    return {operation_name(original_of(wrapper)) for wrapper in wrappers if wrapper is not None}


# Methods of tensors that no torch-function mode is shown.
_UNSEEN = frozenset({"as_subclass"})


def _method(name: str) -> Namespace:
    methods, method = methods_of(torch.Tensor), getattr(torch.Tensor, name)
    # They are inherited; what is there stands for one while a forward in another thread is recorded.
    return Namespace(methods, [Place(methods, name, MISSING, wrapper_of(original_of(method)))])


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")


def _named(namespace: dict[str, Any], ids: set[int]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        if id(original_of(value)) in ids and not name.startswith("__"):
            yield namespace, name


def _compiled(namespace: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        # Dynamo's own begin with underscores; a module whose forward is compiled is a leaf.
        if (
            not name.startswith("_")
            and name != "forward"
            and is_compiled_function(original_of(value))
        ):
            yield namespace, name


def _namespaces(tree: ModuleTree) -> Iterator[dict[str, Any]]:
    """Yield the globals and the methods that the code of the forwards comes to by name."""
    forwards = set(map(forward_of, tree.paths.values()))
    functions = [function for forward in forwards for function in functions_of(forward)]
    yield from {id(f.__globals__): f.__globals__ for f in functions}.values()
    kinds = {base for forward in forwards for kind in kinds_of(forward) for base in kind.__mro__}
    yield from (methods_of(kind) for kind in kinds if is_users(kind))


def _cached(namespace: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in list(namespace.items()):
        if type(original_of(value)) is CachedFunction:
            yield namespace, name
