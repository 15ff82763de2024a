"""From what the user asks for to an ordered mapping of keys to node names. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from .errors import NodeNotFoundError, nearest
from .naming import paths_above

__all__ = ["NodeIndex", "Selection", "is_glob", "normalize"]


class NodeIndex(Protocol):
    """Where names are looked up: a recorded forward, whatever recorded it."""

    def find(self, name: str) -> Any:
        """Return the point called ``name``, or ``None``."""

    def names_of_type(self, kind: type) -> list[str]:
        """Return the name of every call of a module of type ``kind``."""

    def known_names(self) -> Iterable[str]:
        """Every name that would be accepted."""

    @property
    def names(self) -> Mapping[str, Any]:
        """The listed nodes."""

    @property
    def calls(self) -> Mapping[str, Any]:
        """The calls of modules that have nodes of their own inside."""

    @property
    def auto_leaves(self) -> Mapping[str, str]:
        """Path of each module that became one node by itself -> why."""

    @property
    def listing(self) -> str:
        """The call that lists all nodes, for the messages."""

    def kind_of_module(self, path: str) -> str:
        """Return the name of the class of the module at ``path``; ``""`` if there is none."""


class Selection(Mapping[str, Any]):
    """What an extractor returns: output key -> point, in execution order.

    Printed, it is a table of keys and node names.
    """

    def __init__(self, points: Mapping[str, Any], names: Mapping[str, str]) -> None:
        order = sorted(points.items(), key=lambda item: item[1].position)
        self._points = dict(order)
        self._names = {key: names[key] for key in self._points}

    @property
    def names_to_keys(self) -> dict[str, str]:
        """Node name, as it was asked for -> output key."""
        return {name: key for key, name in self._names.items()}

    @classmethod
    def resolve(
        cls,
        request: Mapping[Any, str | None],
        index: NodeIndex,
        mode: str,
        other: NodeIndex | None = None,
    ) -> Selection:
        """Look every entry of a normalized request up in ``index``.

        Args:
            request: entries and keys.
            index: the forward in ``mode``.
            mode: ``"train"`` or ``"eval"``, for the messages.
            other: the forward in the other mode, where a missing name may be.

        Raises:
            NodeNotFoundError: if an entry names no node.
            ValueError: if two nodes would have one key, or a node two.

        """
        points: dict[str, Any] = {}
        asked: dict[str, str] = {}
        keys: dict[str, str] = {}
        for entry, key in request.items():
            try:
                names = _names(entry, index)
            except NodeNotFoundError as error:
                raise _in_mode(error, entry, mode, other) from None
            if key is not None and len(names) > 1:
                raise ValueError(
                    f"{_show(entry)} matches {len(names)} nodes ({', '.join(names[:3])}, ...) but was "
                    f"given the one key {key!r}; pass it in a list to get each under its own name"
                )
            for name in names:
                point, own = index.find(name), name if key is None else key
                taken, earlier = points.setdefault(own, point), keys.setdefault(name, own)
                asked[own] = name
                if taken is not point:
                    raise ValueError(
                        f"the key {own!r} is asked for twice: for {taken.name!r} and for "
                        f"{point.name!r}; give each node its own key"
                    )
                if earlier != own:
                    raise ValueError(
                        f"{name!r} is asked for twice, under the keys {earlier!r} and {own!r}; ask for "
                        "each node once"
                    )
        if not points:
            raise ValueError(
                f"{_show(list(request))} selects no node; list them with get_graph_node_names"
            )
        return cls(points, asked)

    def __getitem__(self, key: str) -> Any:
        return self._points[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __repr__(self) -> str:
        return f"Selection({self._names})"

    def __str__(self) -> str:
        width = max([3, *map(len, self)])
        rows = [("key", "node"), *self._names.items()]
        return "\n".join(f"{key:<{width}}  {name}".rstrip() for key, name in rows)


def normalize(request: Any, what: str = "return_nodes") -> dict[Any, str | None]:
    """Turn each form of a request into a mapping of entries to keys (``None``: the node's name).

    Args:
        request: a name, a list, tuple or set of names and module types, or a dict of these to keys.
        what: what the argument is called, for the error messages.

    Raises:
        ValueError: if the request is empty.
        TypeError: if it, an entry or a key has a wrong type.

    >>> normalize("layer4"), normalize({"layer4": "deep"})
    ({'layer4': None}, {'layer4': 'deep'})

    """
    if isinstance(request, (str, type)):
        request = [request]
    if isinstance(request, Mapping):
        entries: dict[Any, str | None] = dict(request)
        for entry, key in entries.items():
            _check_entry(entry, what)
            if not isinstance(key, str):
                raise TypeError(f"{what}: the key of {_show(entry)} must be a str, not {key!r}")
    elif isinstance(request, (list, tuple, set, frozenset)):
        entries = {}
        for entry in request:
            for single in entry if isinstance(entry, (set, frozenset)) else (entry,):
                _check_entry(single, what)
                entries[single] = None
    elif isinstance(request, nn.Module):
        raise TypeError(
            f"{what} must be a dict, a list of names or a name; {_is_a_module(request)}"
        )
    else:
        raise TypeError(
            f"{what} must be a dict, a list of names or a name, not {type(request).__name__} ({request!r})"
        )
    if not entries:
        raise ValueError(f"{what} is empty; name at least one node, or '' for the model's output")
    return entries


def _check_entry(entry: Any, what: str) -> None:
    if not isinstance(entry, str) and not (
        isinstance(entry, type) and issubclass(entry, nn.Module)
    ):
        problem = f"{_show(entry)} is neither a node name nor a module type"
        if isinstance(entry, nn.Module):
            problem = _is_a_module(entry)
        elif isinstance(entry, int):
            problem += f"; names are strings: '{entry}'"
        raise TypeError(f"{what}: {problem}")


def _is_a_module(entry: nn.Module) -> str:
    kind = type(entry).__name__
    return (
        f"this {kind} is a module, which is neither a node name nor a module type. Ask for it by its path, "
        f"one of those in model.named_modules(), or for all of its type by {{{kind}}}"
    )


def is_glob(entry: str) -> bool:
    """Say whether ``entry`` has a wildcard: ``*``, ``?`` or ``[...]``."""
    return "*" in entry or "?" in entry or "]" in entry.partition("[")[2]


def _names(entry: Any, index: NodeIndex) -> list[str]:
    if isinstance(entry, type):
        names = index.names_of_type(entry)
        if not names:
            problem = f"no module of type {entry.__name__} is called in the forward of the model"
            raise _not_found(_show(entry), index, problem)
        return names
    if index.find(entry) is not None:
        return [entry]
    if is_glob(entry):
        for pool in (index.names, index.calls):
            names = [name for name in pool if name and fnmatch.fnmatchcase(name, entry)]
            if names:
                return names
        raise _not_found(entry, index, f"no node of the model matches {entry!r}")
    raise _not_found(entry, index, f"{entry!r} is no node of the model")


def _not_found(entry: str, index: NodeIndex, problem: str) -> NodeNotFoundError:
    leaf = next((path for path in paths_above(entry) if path in index.names), None)
    if leaf is not None:
        return NodeNotFoundError(
            f"{problem}: it is inside of {leaf!r}, {_why_one_node(leaf, index)}", entry, [leaf]
        )
    kind = index.kind_of_module(entry)
    if kind:
        problem += f": the forward does not call this {kind}"
    suggestions = nearest(entry, index.known_names())
    hint = f" Did you mean {' or '.join(map(repr, suggestions))}?" if suggestions else ""
    return NodeNotFoundError(
        f"{problem}.{hint} {index.listing} lists all nodes; a module's path names what it returns",
        entry,
        suggestions,
    )


def _why_one_node(leaf: str, index: NodeIndex) -> str:
    """Say why ``leaf`` is one node, and how it is looked into."""
    reason = index.auto_leaves.get(leaf)
    if reason is not None:
        return (
            f"which is one node because fx cannot look into it: {reason}. Did you mean {leaf!r}? "
            "backend='hooks' looks into it"
        )
    return (
        f"a leaf module, which is one node. Did you mean {leaf!r}? A layer of torch.nn is one node on "
        "each backend; a module of your leaf_modules is looked into if you leave it out there, and one "
        "that is compiled in place, by its compile(), if you compile the extractor instead"
    )


def _in_mode(
    error: NodeNotFoundError, entry: Any, mode: str, other: NodeIndex | None
) -> NodeNotFoundError:
    """Say so where the other mode has what this one lacks."""
    try:
        found = _names(entry, other) if other is not None else []
    except NodeNotFoundError:
        found = []
    if not found:
        return error
    another = "eval" if mode == "train" else "train"
    return NodeNotFoundError(
        f"{_show(entry)} is a node in {another} mode only, and is asked for in {mode} mode. "
        "Pass train_return_nodes and eval_return_nodes to ask for other nodes in each",
        error.name,
        error.suggestions,
    )


def _show(entry: Any) -> str:
    return f"{{{entry.__name__}}}" if isinstance(entry, type) else repr(entry)
