"""Put back what a call changed, if the call fails.

A forward that raises half-way has moved statistics and drawn random numbers for nothing. What a graph
may change is known when it is made, so only that is copied before a call, and nothing where
nothing moves, as in eval mode of most models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..facts import called_name, may_draw
from ..inplace import effect_of, is_known, leaves_trace
from ..inspecting.trace_left import names_if_it_writes
from ..modules import are_current, links_to
from .held import kept_tensors
from .random_numbers import RandomState
from .saved import SavedTensor, has_unmade, is_unmade
from .untouched import Untouched

__all__ = ["Moves", "Moving", "Undo", "moves_of"]


# Under these names code comes to the memory of a parameter that it is about to write.
_VIEWS = frozenset(
    "getattr getitem detach view view_as reshape flatten t transpose permute select narrow squeeze "
    "unsqueeze expand unfold diagonal".split()
)


class Moves(NamedTuple):
    """What running a graph may change, by path.

    Attributes:
        tensors: module and name of each buffer, and of each parameter that is written.
        modules: modules that run code of their own, which may set attributes.
        holders: those inside of them whose code may write tensors in attributes and containers.
        draws: whether random numbers may be drawn.

    """

    tensors: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    draws: bool = False


def moves_of(
    graphs: Mapping[str, fx.Graph],
    modules: Mapping[str, nn.Module],
    flags: Mapping[str, Callable[[nn.Module], bool]],
) -> dict[str, Moves]:
    """Find out what running each of ``graphs`` may change.

    Args:
        graphs: the graph of each mode.
        modules: the modules of the model by their paths.
        flags: for each mode, the ``training`` flag of each module.

    """
    moving = {graph: list(_moving(graph, modules)) for graph in graphs.values()}
    written = {graph: _written(graph, modules) for graph in graphs.values()}
    return {
        mode: _moves(moving[graph], modules, flags[mode], written[graph])
        for mode, graph in graphs.items()
    }


def _written(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """Return the reads of what the model keeps that something writes later, itself or a view of it."""
    reads: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            reads[node] = node
        elif reads and not reads.keys().isdisjoint(node.all_input_nodes):
            writes = effect_of(node, modules.get(str(node.target))).writes
            written.update(reads[found] for found in writes if found in reads)
            source = node.args[0] if node.args else None
            is_view = called_name(node.target) in _VIEWS
            if isinstance(source, fx.Node) and source in reads and (is_view or source in writes):
                reads[node] = reads[source]
    return written


def _moving(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> Iterator[fx.Node]:
    """Yield the nodes that may change something, in whichever mode."""
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if not is_known(module) or leaves_trace(node, module, lambda _: True):
                yield node
        elif node.op == "get_attr" or _draws(node):
            yield node


def _draws(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and may_draw(node.target)


def _moves(
    nodes: Iterable[fx.Node],
    modules: Mapping[str, nn.Module],
    training: Callable[[nn.Module], bool],
    written: Collection[fx.Node],
) -> Moves:
    tensors: dict[tuple[str, str], None] = {}
    own: dict[str, None] = {}
    holders: dict[str, None] = {}
    draws = False
    for node in nodes:
        path = str(node.target)
        if node.op == "get_attr":
            owner, _, name = path.rpartition(".")
            if owner in modules and (name in modules[owner]._buffers or node in written):
                tensors[owner, name] = None
        elif node.op == "call_module":
            module = modules[path]
            if not is_known(module):
                own[path] = None
                for inner, names in _holders(path, module):
                    holders[inner] = None
                    tensors.update(dict.fromkeys((inner, name) for name in names))
            elif not leaves_trace(node, module, training):
                continue
            tensors.update(dict.fromkeys(_buffers(path, module)))
            draws = True
        else:
            draws = True
    return Moves(tuple(tensors), tuple(own), tuple(holders), draws)


def _holders(path: str, module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of a leaf whose code may write tensors, and the parameters that it mentions."""
    for inner, part in module.named_modules(prefix=path):
        names = names_if_it_writes(part)
        if names is not None:
            yield inner, [name for name in part._parameters if name in names]


def _buffers(path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    for inner, part in module.named_modules(prefix=path):
        if isinstance(part._buffers, dict):  # TorchScript keeps its own behind a wrapper
            yield from ((inner, name) for name in part._buffers)


class Undo:
    """The moment before a call.

    Args:
        registries: where each tensor that may change is, and its name there.
        modules: modules whose attributes may be set.
        holders: modules whose tensors in attributes and containers may be written.
        draws: whether random numbers may be drawn.

    """

    def __init__(
        self,
        registries: Iterable[tuple[dict[str, Any], str]],
        modules: Iterable[nn.Module],
        holders: Iterable[nn.Module],
        draws: bool,
    ) -> None:
        self._copies = [
            (registry, name, SavedTensor(tensor))
            for registry, name in registries
            if isinstance(tensor := registry.get(name), torch.Tensor) and not is_unmade(tensor)
        ]
        self._kept = [SavedTensor(t) for module in holders for t in kept_tensors(module)]
        # What a lazy module is made into in its first forward stays, also if that fails.
        self._untouched = [
            Untouched(module) for module in modules if not any(map(has_unmade, module.modules()))
        ]
        self._random = RandomState() if draws and not _is_capturing() else None

    @property
    def drew(self) -> bool:
        """Whether random numbers were drawn since, if that was looked at."""
        return self._random is not None and self._random.moved

    def moved(self) -> list[tuple[dict[str, Any], str]]:
        """Return where the tensors are that have changed since."""
        return [
            (registry, name)
            for registry, name, saved in self._copies
            if registry.get(name) is not saved.tensor or saved.is_written
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        for untouched in self._untouched:
            untouched.restore()
        for registry, name, saved in self._copies:
            registry[name] = saved.tensor
            saved.restore()
        for saved in self._kept:
            saved.restore()
        if self._random is not None:
            self._random.restore()


class Moving:
    """What a call may change, in the modules that are at the paths just now.

    Args:
        model: the modules.
        moves: what it is.

    """

    def __init__(self, model: nn.Module, moves: Moves) -> None:
        paths = {path for path, _ in moves.tensors}.union(moves.modules, moves.holders)
        self._links = list(links_to(model, paths))
        # Without what is there no more: a parametrization was removed, a layer was exchanged.
        known = dict(model.named_modules(remove_duplicate=False))
        there = {path: known[path] for path in paths if path in known}
        self._registries = [
            (_registry(there[path], name), name) for path, name in moves.tensors if path in there
        ]
        self._modules = [there[path] for path in moves.modules if path in there]
        self._holders = [there[path] for path in moves.holders if path in there]
        self._draws = moves.draws

    @property
    def is_current(self) -> bool:
        """Whether these modules are still there."""
        return are_current(self._links)

    def undo(self) -> Undo:
        """Return what puts back all that changes from now on."""
        return Undo(self._registries, self._modules, self._holders, self._draws)


def _registry(module: nn.Module, name: str) -> dict[str, Any]:
    """Return where ``module`` keeps its tensor ``name``."""
    registries = (module._parameters, module._buffers)
    return next((registry for registry in registries if name in registry), vars(module))


def _is_capturing() -> bool:
    """Say whether a CUDA graph is captured, while no generator may be looked at."""
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return in_use and torch.cuda.is_current_stream_capturing()
