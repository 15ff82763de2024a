"""The names in all code that a forward may come to, taken generously; nothing is run.

Read are all methods of the classes of modules, what these keep in attributes, and what their code finds
in globals, closures, defaults and Python modules. Left out is code of torch and of Python itself, where a
recorder sees one operation at most.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from featuretap.inspecting.containers import CONTAINERS, items_of
from featuretap.inspecting.looking import attributes_of, has_attributes, is_a
from featuretap.inspecting.reading import (
    forward_of,
    instructions_of,
    names_of_code,
    steps_of,
    variables_of,
)
from featuretap.inspecting.whose import is_users_module
from featuretap.keeping.held import without_simple

__all__ = ["chains_of_names", "mentioned_names"]

_CONTAINERS = (*CONTAINERS, tuple, frozenset)


def mentioned_names(modules: Iterable[nn.Module]) -> set[str]:
    """Return the names in all code that forwards of ``modules`` may come to by name."""
    names: set[str] = set()
    seen: set[int] = set()
    waiting: list[Any] = []
    for module in modules:
        waiting += (type(module), *vars(module).values())
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            waiting += _found_in(value, names)
    return names


def chains_of_names(modules: Iterable[nn.Module]) -> set[tuple[str, str]]:
    """Return each attribute that forwards of ``modules`` read, after what they read it of, or may."""
    chains: set[tuple[str, str]] = set()
    for forward in set(map(forward_of, modules)):
        variable = attribute = ""
        for step in steps_of(instructions_of(forward)):
            if step.name in ("LOAD_ATTR", "LOAD_METHOD"):
                chains.update(((variable, step.argument), (attribute, step.argument)))
                attribute, variable = step.argument, ""
            elif step.is_variable or step.name in ("LOAD_DEREF", "LOAD_GLOBAL"):
                variable = step.argument
    return chains


def _found_in(value: Any, names: set[str]) -> Iterator[Any]:
    """Yield what ``value`` leads to; add what it mentions to ``names``."""
    if is_a(value, types.FunctionType):
        if is_users_module(str(value.__module__)):
            yield from _in_a_function(value, names)
    elif is_a(value, type):
        for base in value.__mro__[:-1]:
            if is_users_module(str(base.__module__)):
                yield from vars(base).values()
    elif is_a(value, _CONTAINERS):
        yield from without_simple(items_of(value))
    elif is_a(value, functools.partial):
        yield from (value.func, *value.args)
    elif is_a(value, property):
        yield from (value.fget, value.fset)
    elif is_a(value, (classmethod, staticmethod, types.MethodType)):
        yield value.__func__
    elif not is_a(value, (nn.Module, types.ModuleType)):
        yield type(value)
        if has_attributes(value):
            yield attributes_of(value).get("__wrapped__")


def _in_a_function(function: types.FunctionType, names: set[str]) -> Iterator[Any]:
    mentioned = names_of_code(function.__code__)
    names |= mentioned
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))
    yield from variables_of(function).values()
    spaces, seen = [function.__globals__], set()
    while spaces:
        space = spaces.pop()
        seen.add(id(space))
        found: Iterator[Any] = map(space.get, mentioned & space.keys())
        for value in found:
            if not is_a(value, types.ModuleType):
                yield value
            elif is_users_module(value.__name__) and id(vars(value)) not in seen:
                spaces.append(vars(value))
