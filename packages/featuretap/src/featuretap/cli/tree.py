"""All nodes of a model as a tree."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ..names.node_names import NodeNames
from ..naming import join
from .features import Survey
from .text import align, one_line
from .values import dtype_text, shape_text

if TYPE_CHECKING:
    from .arguments import Arguments

__all__ = ["tree_lines"]

# Before a child, before the last child, and below each of the two.
_DRAWN = ("├─ ", "└─ ", "│  ", "   ")
_TYPED = ("|- ", "`- ", "|  ", "   ")


@dataclass
class _Branch:
    """A part of a name: a scope if it has children, and perhaps a node."""

    path: str
    children: dict[str, _Branch] = field(default_factory=dict)
    is_node: bool = False


def tree_lines(found: Survey, args: Arguments) -> list[str]:
    """Return the lines to print: a headline, the tree, and what has to be said besides."""
    names = found.names
    root = _grow(_merge(found.listed, [] if names.failures else [*names.train, *names.eval]))
    guides = _guides(sys.stdout.encoding or "ascii")
    columns = _Columns(found, args)
    rows = [
        (drawn + label, *columns.cells(branch)) for drawn, label, branch in _walk(root, "", guides)
    ]
    head = args.headline(type(found.model).__name__, f"{len(found.listed)} nodes")
    if args.inputs:
        rows.insert(0, ("", "", "shape", "dtype", "parameters", ""))
        head += f"  {sum(p.numel() for p in found.model.parameters()):,} parameters"
    return [head, "", *align(rows, right={4}), *_remarks(names)]


def _merge(listed: list[str], others: Iterable[str]) -> list[str]:
    """Put names that only the other mode has after the name they follow there."""
    merged = {name: [name] for name in ["", *listed]}
    before = ""
    for name in others:
        if name in merged:
            before = name
        elif name not in merged[before]:
            merged[before].append(name)
    return [name for group in merged.values() for name in group if name]


def _grow(names: Iterable[str]) -> _Branch:
    root = _Branch("")
    for name in names:
        branch = root
        for part in name.split("."):
            branch = branch.children.setdefault(part, _Branch(join(branch.path, part)))
        branch.is_node = True
    return root


def _walk(
    branch: _Branch, indent: str, guides: tuple[str, str, str, str]
) -> Iterator[tuple[str, str, _Branch]]:
    """Yield what is drawn before each branch below ``branch``, its last part, and itself."""
    middle, end, beside, below = guides
    for count, (part, child) in enumerate(branch.children.items(), 1):
        is_last = count == len(branch.children)
        yield indent + (end if is_last else middle), part, child
        yield from _walk(child, indent + (below if is_last else beside), guides)


def _guides(encoding: str) -> tuple[str, str, str, str]:
    try:
        "".join(_DRAWN).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _TYPED
    return _DRAWN


class _Columns:
    """What stands beside each name."""

    def __init__(self, found: Survey, args: Arguments) -> None:
        self._found = found
        self._with_values = bool(args.inputs)
        self._modules = dict(found.model.named_modules(remove_duplicate=False))
        self._parameters = dict(found.model.named_parameters(remove_duplicate=False))
        self._only = _only_in_one_mode(found.names)

    def cells(self, branch: _Branch) -> tuple[str, ...]:
        source = self._found.sources.get(branch.path, branch.path)
        module = self._modules.get(source)
        kind = type(module).__name__ if module is not None else ""
        if source in self._parameters:
            kind = "parameter"
        if kind and not branch.is_node:
            kind = f"({kind})"
        marks = " ".join(self._marks(branch, source))
        if not self._with_values:
            return kind, marks
        shape = dtype = ""
        if branch.path in self._found.values:
            value = self._found.values[branch.path]
            shape, dtype = shape_text(value), dtype_text(value)
        return kind, shape, dtype, f"{self._size(module, source):,}", marks

    def _size(self, module: nn.Module | None, source: str) -> int:
        if module is not None:
            return sum(parameter.numel() for parameter in module.parameters())
        return self._parameters[source].numel() if source in self._parameters else 0

    def _marks(self, branch: _Branch, source: str) -> Iterator[str]:
        if branch.is_node and branch.children:
            yield "[node and scope]"
        if branch.is_node and source in self._found.names.auto_leaves:
            yield "[auto leaf]"
        if branch.path in self._only:
            yield f"[{self._only[branch.path]} only]"


def _only_in_one_mode(names: NodeNames) -> Mapping[str, str]:
    if names.failures:
        return {}
    train, evaluate = set(names.train), set(names.eval)
    return {
        **dict.fromkeys(train - evaluate, "train"),
        **dict.fromkeys(evaluate - train, "eval"),
    }


def _remarks(names: NodeNames) -> Iterator[str]:
    if names.auto_leaves or names.failures:
        yield ""
    for path, reason in names.auto_leaves.items():
        yield f"auto leaf {path}, because fx cannot record what is inside: {one_line(reason)}"
    for mode, reason in names.failures.items():
        yield f"no {mode} mode: {one_line(reason)}"
