"""Python source for the forward of an extractor.

fx's own code looks modules up by string attributes at every call, which costs more than a small
module itself. This code goes through ``_modules`` instead, drops each value after its last use, and
holds the graphs of both modes in one ``forward`` that has the signature of the model's.
"""

from __future__ import annotations

import inspect
import itertools
import keyword
import linecache
import math
import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import fx

from ..refusals.checks import check_empty, check_fixed, mode_missing
from . import meta_keys
from .symbols import written_operator

__all__ = ["compile_forward"]


def compile_forward(
    signature: inspect.Signature,
    graphs: Mapping[str, fx.Graph | str],
    fixed: Mapping[str, Mapping[str, Any]],
    label: str,
    own: frozenset[str],
) -> tuple[Callable[..., Any], str]:
    """Compile the graphs of both modes into one function.

    Args:
        signature: the signature of the model's forward, without ``self``.
        graphs: ``"train"`` and ``"eval"`` -> the graph, or why there is none.
        fixed: for each mode, the arguments that were fixed when tracing.
        label: what tracebacks call the source.
        own: attributes of the extractor itself, behind which a buffer of that name is hidden.

    Returns:
        The function ``forward(self, ...)`` and its source.

    """
    # fx names values in lower case, so an upper-case letter keeps our own names apart from them;
    # the arguments are called what the user called them.
    prefix = ""
    while any(name.startswith((f"{prefix}F", f"{prefix}M")) for name in signature.parameters):
        prefix += "_"
    names = _Names(prefix, own, signature.parameters)
    more = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    train = _body(graphs["train"], fixed["train"], more, names)
    is_one = graphs["train"] is graphs["eval"] and fixed["train"] is fixed["eval"]
    evaluate = train if is_one else _body(graphs["eval"], fixed["eval"], more, names)
    header = f"def forward(self{_parameters(signature, names)}):"
    if train == evaluate:
        lines = [header, *_indent(train)]
    else:
        lines = [header, "    if self.training:", *_indent(train, 2), *_indent(evaluate)]
    source = "\n".join(lines) + "\n"
    filename = f"<featuretap {label} {next(_NUMBERS)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), names.namespace)
    forward = names.namespace["forward"]
    weakref.finalize(forward, linecache.cache.pop, filename, None)
    return forward, source


# Of the sources, each of which is in a file of its own for tracebacks and ``inspect``.
_NUMBERS = itertools.count(1)


class _Names:
    """Global names of the generated source: functions, and constants without a literal."""

    def __init__(self, prefix: str, own: frozenset[str], arguments: Collection[str]) -> None:
        self.prefix = prefix
        self.own = own
        # Under names of their own, which an argument hides if it has the same.
        readable = {name: value for name, value in _READABLE.items() if name not in arguments}
        self.namespace: dict[str, Any] = readable.copy()
        self._by_id = {id(value): name for name, value in readable.items()}

    def of(self, value: Any) -> str:
        """Return a global name for ``value``."""
        name = self._by_id.get(id(value))
        if name is None:
            stem = getattr(value, "__name__", type(value).__name__)
            stem = stem if stem.isidentifier() else "constant"
            name = f"{self.prefix}F{len(self._by_id)}_{stem}"
            self._by_id[id(value)] = name
            self.namespace[name] = value
        return name


_READABLE = {
    "OrderedDict": OrderedDict,
    "_check_fixed": check_fixed,
    "_check_empty": check_empty,
    "slice": slice,
    "getattr": getattr,
}


def _indent(lines: list[str], levels: int = 1) -> list[str]:
    return ["    " * levels + line for line in lines]


def _parameters(signature: inspect.Signature, names: _Names) -> str:
    text = ""
    keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            text += f", **{parameter.name}"
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            text += ", *"
            keyword_only = True
        text += f", {parameter.name}"
        if parameter.default is not inspect.Parameter.empty:
            text += f"={_literal(parameter.default, names)}"
    return text


def _body(graph: fx.Graph | str, fixed: Mapping[str, Any], more: str, names: _Names) -> list[str]:
    if isinstance(graph, str):
        return [f"{names.of(mode_missing)}({graph!r})", "return None"]
    lines = [
        f"{names.of(check_fixed)}({name!r}, {name}, {_literal(value, names)})"
        for name, value in fixed.items()
    ]
    if more:
        lines.append(f"{names.of(check_empty)}({more!r}, {more})")
    local, dropped = _local_names(graph, {*fixed, more})
    holders = _Holders(graph, names.prefix)
    # Regions stay open as long as they last: one that is entered again casts its weights again.
    regions: tuple[Any, ...] = ()
    for node in graph.nodes:
        if node.op == "placeholder":
            block = []
        elif node.op == "output":
            block = [f"return {_result(node.args[0], local, names)}"]
        else:
            block = [*holders.needed_by(node), _statement(node, local, names, holders)]
        if node in dropped:
            block.append(f"del {', '.join(dropped[node])}")
        inside = node.meta.get(meta_keys.REGIONS, ()) if node.op != "placeholder" else ()
        if not inside and not regions:
            lines += block
            continue
        kept = _common(regions, inside)
        for depth in range(kept, len(inside)):
            lines += _indent([f"with {_region(inside[depth], names)}:"], depth)
        lines += _indent(block or ["pass"], len(inside)) if inside or block else []
        regions = inside
    return lines


def _common(first: tuple[Any, ...], second: tuple[Any, ...]) -> int:
    """Count the regions that two places share, from the outermost."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


def _region(region: Any, names: _Names) -> str:
    arguments = ", ".join(f"{name}={_literal(value, names)}" for name, value in region.arguments)
    return f"{names.of(region.enter)}({arguments})"


def _local_names(
    graph: fx.Graph, arguments: set[str]
) -> tuple[dict[fx.Node, str], dict[fx.Node, list[str]]]:
    """Name the values, and say after which node which names are dropped.

    Placeholders are called by their argument, the others as in fx. A value that dies where a single
    new one is made hands its name on, which drops it without a statement.
    """
    local: dict[fx.Node, str] = {}
    dropped: dict[fx.Node, list[str]] = {}
    taken = {"self", *_READABLE, *arguments}
    taken.update(str(node.target) for node in graph.nodes if node.op == "placeholder")
    dying = _last_uses(graph)
    for node in graph.nodes:
        dead = [local[value] for value in dying.get(node, ()) if value in local]
        if node.op == "placeholder":
            local[node] = str(node.target)
        elif node.op != "output":
            if dead and not _is_statement(node):
                local[node] = dead.pop()
            else:
                local[node] = _free_name(node.name, taken)
            # A value that nobody uses is dropped at once.
            dead += [local[node]] if node in dying.get(node, ()) and not _is_statement(node) else []
        if dead and node.op != "output":
            dropped[node] = dead
    return local, dropped


def _is_statement(node: fx.Node) -> bool:
    return node.target is operator.setitem


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken or keyword.iskeyword(name):
        name += "_"
    taken.add(name)
    return name


class _Holders:
    """Locals for the modules that hold what a graph calls, instead of a chain of look-ups at each call.

    One for each depth, for a local for each module takes longer to compile.
    """

    def __init__(self, graph: fx.Graph, prefix: str) -> None:
        uses: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                path = str(node.target)
                while path:
                    path = path.rpartition(".")[0]
                    uses[path] = uses.get(path, 0) + 1
                    if uses[path] > 1:
                        break  # the holders of this holder have counted it already
        self._names = {
            owner: f"{prefix}M{owner.count('.') + bool(owner)}"
            for owner, count in uses.items()
            if count > 1
        }
        self._now: dict[str, str] = {}

    def needed_by(self, node: fx.Node) -> list[str]:
        """Return the assignments that must come before ``node``, which calls what a holder holds."""
        if node.op != "call_module":
            return []
        lines: list[str] = []
        owner = str(node.target)
        while owner:
            owner = owner.rpartition(".")[0]
            name = self._names.get(owner)
            if name is not None:
                if self._now.get(name) == owner:
                    break
                self._now[name] = owner
                lines.insert(0, f"{name} = {self._look_up(owner)}")
        return lines

    def module(self, path: str) -> str:
        """Write the module at ``path``."""
        owner, _, name = path.rpartition(".")
        return f"{self._names.get(owner) or self._look_up(owner)}[{name!r}]"

    def _look_up(self, path: str) -> str:
        return f"{self.module(path) if path else 'self'}._modules"


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Map each node to the values that nothing uses after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for value in node.all_input_nodes:
            last[value] = node
    dying: dict[fx.Node, list[fx.Node]] = {}
    for value, node in last.items():
        if value.op != "output":
            dying.setdefault(node, []).append(value)
    return dying


def _statement(
    node: fx.Node, local: Mapping[fx.Node, str], names: _Names, holders: _Holders
) -> str:
    target: Any = node.target
    if node.op == "get_attr":
        return f"{local[node]} = {_attribute(str(target), names)}"
    arguments = [_expression(argument, local, names) for argument in node.args]
    if node.op == "call_function" and getattr(target, "__module__", "") == "_operator":
        if target.__name__ == "setitem":
            return f"{arguments[0]}[{arguments[1]}] = {arguments[2]}"
        if target.__name__ == "getitem":
            return f"{local[node]} = {arguments[0]}[{arguments[1]}]"
        written = written_operator(target.__name__, local[node], arguments)
        if written:
            return written
    arguments += [
        f"{name}={_expression(value, local, names)}" for name, value in node.kwargs.items()
    ]
    if node.op == "call_method":
        return f"{local[node]} = {arguments[0]}.{target}({', '.join(arguments[1:])})"
    called = holders.module(str(target)) if node.op == "call_module" else names.of(target)
    return f"{local[node]} = {called}({', '.join(arguments)})"


def _module(path: str) -> str:
    return "self" + "".join(f"._modules[{part!r}]" for part in path.split("."))


def _attribute(path: str, names: _Names) -> str:
    owner, _, name = path.rpartition(".")
    if path in names.own:
        return f"{{**self._buffers, **self._parameters}}[{name!r}]"
    holder = _module(owner) if owner else "self"
    if name.isidentifier():
        return f"{holder}.{name}"
    return f"{names.of(getattr)}({holder}, {name!r})"


def _result(value: Any, local: Mapping[fx.Node, str], names: _Names) -> str:
    items = ", ".join(
        f"({key!r}, {_expression(item, local, names)})" for key, item in value.items()
    )
    return f"{names.of(OrderedDict)}([{items}])"


def _expression(value: Any, local: Mapping[fx.Node, str], names: _Names) -> str:
    """Write an argument of a node as Python."""
    if isinstance(value, fx.Node):
        return local[value]
    if isinstance(value, slice):
        parts = (_expression(part, local, names) for part in (value.start, value.stop, value.step))
        return f"{names.of(slice)}({', '.join(parts)})"
    if isinstance(value, tuple) and type(value).__name__ != "Size":
        items = [_expression(item, local, names) for item in value]
        if hasattr(value, "_fields"):
            return f"{names.of(type(value))}({', '.join(items)})"
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(_expression(item, local, names) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_literal(k, names)}: {_expression(v, local, names)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    return _literal(value, names)


def _literal(value: Any, names: _Names) -> str:
    if value is None or value is ... or type(value) in (bool, int, str):
        return repr(value)
    if type(value) is float and math.isfinite(value):
        return repr(value)
    return names.of(value)
