"""What a backend is, and where backends are found.

A package offers one by an entry point in the group ``featuretap.backends``, whose name is what the
user writes in ``backend=`` and whose object follows :class:`Backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from torch import nn

from .names.node_names import NodeNames

__all__ = ["MODES", "Backend", "Options", "available_backends", "load_backend"]

#: The modes that a model is in, and what they are called.
MODES = ("train", "eval")

GROUP = "featuretap.backends"


@dataclass(frozen=True)
class Options:
    """What the user may say besides the model and the request, checked and completed.

    Attributes:
        leaf_modules: module types and instances that are not looked into.
        autowrap_functions: functions that are one node each.
        autowrap_modules: Python modules whose functions are one node each.
        concrete_args: arguments of ``forward`` that are fixed to a value.
        example_args: positional arguments of an example call.
        example_kwargs: keyword arguments of an example call.
        suppress_diff_warning: do not warn where a name is another operation in each mode.
        early_stop: whether a forward may end once every requested value is there.
        missing: ``"error"`` or ``"skip"``, for nodes that a forward does not reach.

    """

    leaf_modules: tuple[type[nn.Module] | nn.Module, ...] = ()
    autowrap_functions: tuple[Callable[..., Any], ...] = ()
    autowrap_modules: tuple[Any, ...] = ()
    concrete_args: Mapping[str, Any] = field(default_factory=dict)
    example_args: tuple[Any, ...] | None = None
    example_kwargs: Mapping[str, Any] | None = None
    suppress_diff_warning: bool = False
    early_stop: bool = True
    missing: str = "error"

    def without_example(self) -> Options:
        """Return the same for what lives longer than the arguments of the example."""
        return replace(self, example_args=None, example_kwargs=None)

    @property
    def example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of the example call."""
        return self.example_args or (), self.example_kwargs or {}

    @property
    def has_example(self) -> bool:
        """Whether the user gave the arguments of a call."""
        return self.example_args is not None or self.example_kwargs is not None


class Backend(Protocol):
    """Something that can name the nodes of a model and extract them."""

    def node_names(self, model: nn.Module, options: Options) -> NodeNames:
        """Return the names of all nodes of ``model``, for both modes."""

    def extractor(
        self, model: nn.Module, requests: Mapping[str, Mapping[Any, str | None]], options: Options
    ) -> nn.Module:
        """Return a module that extracts ``requests["train"]`` or ``requests["eval"]``."""


def available_backends() -> list[str]:
    """Return the names that ``backend=`` accepts here besides ``"auto"``."""
    return ["fx", *(name for name in _entry_points() if name != "fx")]


@cache
def load_backend(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        ValueError: if no installed package offers it.

    """
    if name == "fx":
        from .fx_backend import FxBackend

        return FxBackend()
    entry = _entry_points().get(name)
    if entry is None:
        hint = "; install featuretap-hooks for it" if name == "hooks" else ""
        choices = ", ".join(map(repr, ["auto", *available_backends()]))
        raise ValueError(f"there is no backend {name!r} here (there is {choices}){hint}")
    backend: Backend = entry.load()
    return backend


@cache
def _entry_points() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
