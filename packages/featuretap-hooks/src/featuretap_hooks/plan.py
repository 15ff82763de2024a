"""From a request to what must be watched: the cheapest hooks that still name it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from featuretap.modules import LeafRule, ModuleTree
from featuretap.selection import NodeIndex, Selection, is_glob
from featuretap.signatures import has_own_call

from .guessing import Guess
from .program import Program
from .scopes import Calls, Part

__all__ = ["Plan", "Watch"]


@dataclass
class Plan:
    """What one mode of an extractor watches.

    Attributes:
        request: what was asked for.
        keys: node name -> output keys; ``None`` until a forward has shown what the request matches.
        overwritten: nodes that must be copied, with and without gradients, once a forward has shown
            which.
        retained: nodes that must be copied because the model keeps their memory beyond its forward.
        calls: who calls whom; ``None`` until a forward has shown it.
        nested: modules that were seen to call themselves.
        moving: path, registry and name of each buffer or parameter that a forward moves; ``None`` until
            one has shown it.
        moving_kept: paths of the modules that a forward writes other tensors of; ``None`` as before.
        draws: whether a forward may draw random numbers of torch.
        draws_elsewhere: whether it may draw those of Python or NumPy.
        moves_outside: whether it may change what lies outside of the modules.
        leaves_nothing: whether a forward is known to move nothing and to draw nothing.
        must_end: whether a forward was seen to switch something over for a while.
        returning: context variables that one was seen to switch over, which can be put back.
        staying: what one was seen to change and to leave so.

    """

    request: Mapping[Any, str | None]
    keys: dict[str, list[str]] | None = None
    names_to_keys: dict[str, str] = field(default_factory=dict)
    overwritten: dict[bool, set[str]] = field(default_factory=dict)
    retained: set[str] = field(default_factory=set)
    calls: Calls | None = None
    nested: set[str] = field(default_factory=set)
    moving: list[tuple[str, str, str]] | None = None
    moving_kept: list[str] | None = None
    draws: bool = True
    draws_elsewhere: bool = True
    moves_outside: bool = True
    leaves_nothing: bool = False
    must_end: bool = False
    returning: set[object] = field(default_factory=set)
    staying: set[object] = field(default_factory=set)

    def resolve(self, index: NodeIndex, mode: str, other: NodeIndex | None = None) -> None:
        """Look the request up in ``index``; ``other`` is that of the other mode, for the messages."""
        self._take(Selection.resolve(self.request, index, mode, other))

    def guess(self, guess: Guess, mode: str) -> None:
        """Resolve what needs no forward; check the rest as far as is possible."""
        globs = {
            entry
            for entry in self.request
            if isinstance(entry, str) and is_glob(entry) and guess.find(entry) is None
        }
        known = dict(self.request)
        for entry in globs:
            is_open = not any(fnmatchcase(name, entry) for name in guess.known_names())
            if is_open and guess.may_match(entry):
                del known[entry]
        selection = Selection.resolve(known, guess, mode) if known else None
        if selection is not None and not globs and not any(isinstance(e, type) for e in known):
            self._take(selection)
        else:
            self.names_to_keys = {
                str(entry): str(key or entry) for entry, key in self.request.items()
            }

    def forget(self) -> None:
        """Forget what forwards have shown, because the model is another one now."""
        vars(self).update(vars(Plan(self.request, self.keys, self.names_to_keys)))

    def _take(self, selection: Selection) -> None:
        self.names_to_keys = selection.names_to_keys
        self.keys = {}
        for key, point in selection.items():
            self.keys.setdefault(point.name, []).append(key)


@dataclass(frozen=True)
class Watch:
    """How the names of a plan are watched.

    Attributes:
        names: all of them.
        outputs: modules whose first output is wanted.
        inputs: node name -> argument of the model.
        parameters: names of parameters.
        scopes: modules in whose forwards operations must be counted.

    """

    names: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: Mapping[str, str]
    parameters: tuple[str, ...]
    scopes: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], tree: ModuleTree, inputs: Mapping[str, str]) -> Watch:
        """Sort ``names`` by what they need."""
        names = tuple(names)
        outputs, wanted_inputs, parameters, scopes = [], {}, [], set()
        for name in names:
            if name in inputs:
                wanted_inputs[name] = inputs[name]
            elif name in tree.paths:
                outputs.append(name)
            else:
                if name in tree.parameters:
                    parameters.append(name)
                scopes.add(name.rpartition(".")[0])
        return cls(names, tuple(outputs), wanted_inputs, tuple(parameters), frozenset(scopes))

    def program(
        self,
        keys: Mapping[str, list[str]],
        calls: Calls | None,
        tree: ModuleTree,
        *,
        stop: bool,
        retained: Iterable[str],
    ) -> Program:
        """Say the same to dynamo."""
        others = [name for name in self.names if name not in {*self.outputs, *self.inputs}]
        if others and calls is None:
            return Program(
                problem="torch.compile needs to know where the requested operations are: call the "
                "extractor once before, in train() and in eval() if it is used in both, or pass "
                "example_args to create_feature_extractor"
            )
        seen = calls or Calls()
        outputs = {path: {0: path} for path in self.outputs}
        operations: dict[tuple[str, int], str] = {}
        for name in others:
            if name in seen.outputs:
                path, number = seen.outputs[name]
                outputs.setdefault(path, {})[number] = name
            elif name in seen.places:
                operations[seen.places[name]] = name
            else:
                return Program(
                    problem=f"{name!r} cannot be compiled: only operations that return tensors, inputs, "
                    "and outputs of modules can; backend='fx' may serve it"
                )
        arguments = list(tree.signature.parameters)
        return Program(
            keys,
            outputs,
            operations,
            {scope: seen.functions.get(scope, []) for scope, _ in operations},
            {name: (arguments.index(given), given) for name, given in self.inputs.items()},
            stop,
            tuple(retained),
            has_own_call(tree.model),
        )

    def part(self, calls: Calls | None, tree: ModuleTree, is_leaf: LeafRule) -> Part:
        """Return what must be recorded, given who was seen to call whom.

        All of the model if nothing was seen yet, if the scopes cannot be recorded alone, if a parameter
        is wanted, which may be used anywhere, or if hardly anything would be left out: to tell which
        operations are of the part has its own price.
        """
        if calls is None or self.parameters or not self.scopes.isdisjoint(calls.foreign):
            return Part.of(None, tree.paths, is_leaf)
        modules = {
            path: module
            for path, module in tree.paths.items()
            if path in self.scopes
            or path in self.outputs
            or path.rpartition(".")[0] in self.scopes
            or not self.scopes.isdisjoint(calls.callers.get(path, ()))
        }
        if calls.started.keys() <= modules.keys():
            return Part.of(None, tree.paths, is_leaf)
        names_inputs = "" in self.scopes or bool(self.inputs)
        return Part.of(self.scopes, modules, is_leaf, names_inputs=names_inputs)
