"""Which names a model can have, before any forward has been watched.

Modules, inputs and parameters are known; an operation is taken on trust if there is one of its
name, and only its scope is checked. What was never reached shows after the forward.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Set
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from featuretap._compat import functions_wrapped_for_fx
from featuretap.backends import Options
from featuretap.modules import LeafRule, ModuleTree
from featuretap.naming import Namer, operation_name, without_counter

from ._compat import namespaces_of_operators, registered_operators
from .calls.fast_paths import takes_note
from .calls.places import operations_at, places
from .calls.wrapper import is_wrapped
from .index import ModulesOfIndex, Point, read_parameter
from .inspecting.mentioned import chains_of_names, mentioned_names

__all__ = ["Guess", "has_forward", "input_names"]

_SPECIAL = "*?["
_BEFORE_A_NUMBER = re.compile(r"_\d*$")


class Guess(ModulesOfIndex):
    """A :class:`featuretap.selection.NodeIndex` of a forward that has not run."""

    def __init__(self, tree: ModuleTree, options: Options) -> None:
        super().__init__(tree)
        self._options = options
        self._of_places: Set[str] | None = None
        self._chains: set[tuple[str, str]] | None = None
        self._is_leaf = is_leaf = LeafRule(options.leaf_modules)
        self._functions = {operation_name(function) for function in options.autowrap_functions}
        for module in options.autowrap_modules:
            self._functions.update(map(operation_name, vars(module)))
        self.inputs = input_names(tree)
        modules = [(path, module) for path, module in tree.paths.items() if path]
        # A ``ModuleList`` and its like, which nobody calls.
        self._lists = {path for path, module in modules if not has_forward(module)}
        closed = [path for path, module in modules if takes_note(module)]
        self._closed = tuple(f"{path}." for path in closed)
        leaves = [path for path, module in modules if path in closed or is_leaf(module, path)]
        leaves = list(filter(self._is_known, leaves))
        ends = {*leaves}
        rest = [path for path in tree.paths if self._is_known(path) and path not in ends]
        self._points = {
            name: Point(name, at) for at, name in enumerate([*self.inputs, *leaves, *rest])
        }
        self.names = {name: self._points[name] for name in [*self.inputs, *leaves]}
        self.calls = {name: self._points[name] for name in rest}

    def find(self, name: str) -> Point | None:
        """Return a point if there can be one called ``name``."""
        name = self._tree.canonical(name)
        if name not in self._points:
            name = name if self._possible(name) else read_parameter(name, self._tree)
            if not name:
                return None
            self._points.setdefault(name, Point(name, len(self._points)))
        return self._points[name]

    def names_of_type(self, kind: type) -> list[str]:
        """Return the paths of all modules of type ``kind`` that can be nodes."""
        paths = self._tree.paths.items()
        return [path for path, module in paths if isinstance(module, kind) and self._is_known(path)]

    def known_names(self) -> Iterable[str]:
        """Every name that is known to exist."""
        modules = (*self._tree.paths, *self._tree.aliases)
        return [*self.inputs, *filter(self._is_known, modules)]

    def _is_known(self, name: str) -> bool:
        return self._open(name) and name not in self._lists

    def may_match(self, pattern: str) -> bool:
        """Say whether some node, also of those that are not known yet, can match a glob."""
        start = pattern[: min(pattern.index(c) for c in _SPECIAL if c in pattern)]
        counted = _BEFORE_A_NUMBER.sub("", start)  # ``relu_[12]``
        if any(path.startswith(start) or path == counted for path in self.known_names()):
            return True
        scope, _, operation = start.rpartition(".")
        counted = counted.rpartition(".")[2]
        known = self._functions | _operations() | _registered()
        return scope in self._tree.paths and any(
            name.startswith(operation) or name == counted for name in known
        )

    def _open(self, name: str) -> bool:
        if not name.startswith(self._closed) or name in self._tree.parameters:
            return True
        others = [alias for alias, path in self._tree.aliases.items() if path == name]
        return self._is_called_past(name) or not all(a.startswith(self._closed) for a in others)

    def _is_called_past(self, name: str) -> bool:
        """Say whether a forward may call by itself what is in a layer that nobody looks into.

        So it does if it says ``self.enc.layers``, where the layer is ``enc``.
        """
        if self._chains is None:
            self._chains = chains_of_names(self._tree.paths.values())
        outer = next(closed for closed in self._closed if name.startswith(closed))
        inside = without_counter(name[len(outer) :])
        start = next((n for n in reversed(outer[:-1].split(".")) if not n.isdigit()), "")
        steps = [start, *(step for step in inside.split(".") if not step.isdigit())]
        return self._chains.issuperset(pairwise(steps))

    def _possible(self, name: str) -> bool:
        tree = self._tree
        if not self._is_known(name):
            return False
        if name in tree.paths or name in tree.parameters or without_counter(name) in tree.paths:
            return True
        scope, _, operation = name.rpartition(".")
        if scope not in tree.paths or (scope and self._is_leaf(tree.paths[scope], scope)):
            return False
        names = {operation, without_counter(operation)}
        known: list[Callable[[], Set[str]]] = [self._known, _registered, self._replaced]
        return any(not names.isdisjoint(found()) for found in known)

    def _known(self) -> frozenset[str]:
        return _operations() | self._functions

    def _replaced(self) -> Set[str]:
        """Names of the functions that are one node where the forwards look them up."""
        if self._of_places is None:
            mentioned = mentioned_names(self._tree.paths.values())
            self._of_places = operations_at(places(self._tree, self._options, mentioned))
        return self._of_places


def has_forward(module: nn.Module) -> bool:
    """Say whether ``module`` has a forward of its own, which a container has not."""
    # Another thread may watch the module, and have wrapped a forward that is none.
    own = vars(module).get("forward")
    if isinstance(module, torch.jit.ScriptModule) or not (own is None or is_wrapped(own)):
        return True
    # Not by the attribute, which TorchScript makes anew.
    forward = inspect.getattr_static(type(module), "forward", None)
    return forward is not None and forward is not nn.Module.forward


def input_names(tree: ModuleTree) -> dict[str, str]:
    """Map the node name of each argument of the model to the argument."""
    namer = Namer(tree.reserved)
    names = [
        parameter.name
        for parameter in tree.signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return {namer.operation("", name): name for name in names}


@cache
def _operations() -> frozenset[str]:
    """Names of everything in torch that may be a node, and of what numbers, lists and dicts do."""
    spaces: list[Any] = [torch, torch.Tensor, torch.nn.functional, torch.fft, torch.linalg]
    spaces += [torch.special, torch.nn.init, operator, math, int, float, list, dict]
    spaces += namespaces_of_operators()
    names = {operation_name(name) for space in spaces for name in dir(space)}
    return frozenset({*names, "getattr", "getitem", "round"})


def _registered() -> frozenset[str]:
    """Names of what libraries registered, which may be more at any time.

    Operators of ``torch.ops``, and functions given to ``torch.fx.wrap``.
    """
    operators = [
        name
        for packet, overload in registered_operators()
        for name in (packet, f"{packet}.{overload}")
    ]
    wrapped = [name for _, name in functions_wrapped_for_fx()]
    return frozenset(map(operation_name, [*operators, *wrapped]))
