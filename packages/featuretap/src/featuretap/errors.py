"""What can go wrong, and how it is said.

Every message answers four questions: what was asked, what is wrong with it, what is the
nearest thing that would be right, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "FAILS_ON_EXAMPLE",
    "DifferentValuesError",
    "FallbackWarning",
    "NodeNotFoundError",
    "NodeNotReachedError",
    "UntraceableModelError",
    "fails_on_example",
    "nearest",
]


# How an UntraceableModelError begins whose cause is the model's own.
FAILS_ON_EXAMPLE = "the model fails on the example inputs"


class NodeNotFoundError(ValueError):
    """A requested name is no node of the model.

    Attributes:
        name: the name that was asked for.
        suggestions: the names nearest to it, best first.
        hidden: where the name may be all the same, out of the backend's sight; ``""`` if nowhere.

    """

    def __init__(
        self, message: str, name: str = "", suggestions: Sequence[str] = (), hidden: str = ""
    ) -> None:
        super().__init__(message)
        self.name = name
        self.suggestions = tuple(suggestions)
        self.hidden = hidden

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.name, self.suggestions, self.hidden)


class NodeNotReachedError(NodeNotFoundError):
    """A requested node exists, but the forward that just ran did not reach it."""


class UntraceableModelError(RuntimeError):
    """``torch.fx`` cannot record this model's own forward faithfully.

    Attributes:
        module_path: path of the module whose forward could not be recorded (``""`` for the root).
        location: ``"file:line"`` of the statement, or ``""`` if it is not known.

    """

    def __init__(self, message: str, module_path: str = "", location: str = "") -> None:
        super().__init__(message)
        self.module_path = module_path
        self.location = location

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.module_path, self.location)


def fails_on_example(failures: Mapping[str, Exception]) -> UntraceableModelError:
    """Make the error of a model whose forward raises in each mode that the example was run in.

    Args:
        failures: mode -> what it raises.

    >>> print(fails_on_example({"train": ValueError("no labels"), "eval": ValueError("no labels")}))
    the model fails on the example inputs in train and eval mode: ValueError: no labels

    """
    modes: dict[str, list[str]] = {}
    for mode, error in failures.items():
        modes.setdefault(f"{type(error).__name__}: {error}", []).append(mode)
    told = "; ".join(f"in {' and '.join(where)} mode: {text}" for text, where in modes.items())
    return UntraceableModelError(f"{FAILS_ON_EXAMPLE} {told}")


class DifferentValuesError(ValueError):
    """A feature is not what the real forward computes."""


class FallbackWarning(UserWarning):
    """``backend="auto"`` left fx for another backend; the message says why."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the ``count`` names most like ``name``, best first.

    Names that end in the same operation or begin with the same path come before names that
    merely look alike, because a forgotten or wrong prefix is the commonest mistake.
    """
    pool = list(dict.fromkeys(n for n in names if n))
    inside = [n for n in pool if n.endswith("." + name) or n.startswith(name + ".")]
    inside += [n for n in pool if name.endswith("." + n)]
    lower = {n.lower(): n for n in reversed(pool)}
    matches = difflib.get_close_matches(name.lower(), lower, n=count, cutoff=0.5)
    alike = [lower[match] for match in matches]
    around = sorted((n for n in pool if name.startswith(n + ".")), key=len, reverse=True)
    return list(dict.fromkeys([*inside[:count], *alike, *around]))[:count]
