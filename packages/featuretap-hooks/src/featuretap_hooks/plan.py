"""From a request to what must be watched: the cheapest hooks that still name it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from featuretap.modules import ModuleTree
from featuretap.selection import NodeIndex, Selection

from .guessing import Guess
from .scopes import Only

__all__ = ["Plan", "Watch"]

_SPECIAL = frozenset("*?[")


@dataclass
class Plan:
    """What one mode of an extractor watches.

    Attributes:
        request: what was asked for.
        keys: node name -> output keys; ``None`` until a forward has shown what the request matches.
        overwritten: nodes that must be copied, with and without gradients, once a forward has shown
            which.
        callers: module -> scopes it was called in; ``None`` until a forward has shown it.

    """

    request: Mapping[Any, str | None]
    keys: dict[str, list[str]] | None = None
    names_to_keys: dict[str, str] = field(default_factory=dict)
    overwritten: dict[bool, set[str]] = field(default_factory=dict)
    callers: dict[str, set[str]] | None = None

    def resolve(self, index: NodeIndex, mode: str) -> None:
        """Look the request up in ``index``."""
        selection = Selection.resolve(self.request, index, mode)
        self.names_to_keys = selection.names_to_keys
        self.keys = {}
        for key, point in selection.items():
            self.keys.setdefault(point.name, []).append(key)

    def guess(self, guess: Guess, mode: str) -> None:
        """Resolve what needs no forward; check the rest as far as is possible."""
        if any(isinstance(entry, type) or _is_glob(entry, guess) for entry in self.request):
            known = {
                entry: key
                for entry, key in self.request.items()
                if isinstance(entry, str) and not _is_glob(entry, guess)
            }
            if known:
                Selection.resolve(known, guess, mode)
            return
        self.resolve(guess, mode)


def _is_glob(entry: Any, guess: Guess) -> bool:
    return (
        isinstance(entry, str)
        and bool(_SPECIAL.intersection(entry))
        and (guess.find(entry) is None)
    )


@dataclass(frozen=True)
class Watch:
    """How the names of a plan are watched.

    Attributes:
        outputs: modules whose first output is wanted.
        inputs: node name -> argument of the model.
        parameters: names of parameters.
        scopes: modules in whose forwards operations must be counted.

    """

    outputs: tuple[str, ...]
    inputs: Mapping[str, str]
    parameters: tuple[str, ...]
    scopes: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], tree: ModuleTree, inputs: Mapping[str, str]) -> Watch:
        """Sort ``names`` by what they need."""
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
        return cls(tuple(outputs), wanted_inputs, tuple(parameters), frozenset(scopes))

    def only(self, callers: Mapping[str, set[str]], tree: ModuleTree) -> Only:
        """Return the modules that must tell when they run, given who was seen to call whom."""
        modules = [
            path
            for path in tree.paths
            if path in self.scopes
            or path in self.outputs
            or path.rpartition(".")[0] in self.scopes
            or not self.scopes.isdisjoint(callers.get(path, ()))
        ]
        return Only(self.scopes, tuple(modules))


