"""Put back what a call changed, if the call fails.

A forward that raises half-way has moved statistics and drawn random numbers for nothing. What a graph
may change is known when it is made, so only that is copied before a call, and nothing where
nothing moves, as in eval mode of most models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from . import _compat
from .comparing import identical
from .facts import may_draw
from .faithful import RandomState
from .inplace import is_known, leaves_trace
from .untouched import Untouched

__all__ = ["Moves", "Undo", "moves_of"]


class Moves(NamedTuple):
    """What running a graph may change, by path.

    Attributes:
        tensors: module and name of each buffer.
        modules: modules that run code of their own, which may set attributes.
        draws: whether random numbers may be drawn.

    """

    tensors: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    draws: bool = False


def moves_of(
    graph: fx.Graph, modules: dict[str, nn.Module], training: Callable[[nn.Module], bool]
) -> Moves:
    """Find out what running ``graph`` may change.

    Args:
        graph: the graph of one mode.
        modules: the modules of the model by their paths.
        training: the flag of each module in that mode.

    """
    tensors: dict[tuple[str, str], None] = {}
    own: dict[str, None] = {}
    draws = False
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "get_attr":
            owner, _, name = path.rpartition(".")
            if owner in modules and name in modules[owner]._buffers:
                tensors[owner, name] = None
        elif node.op == "call_module":
            module = modules[path]
            if not is_known(module):
                own[path] = None
                tensors.update(dict.fromkeys(_buffers(path, module)))
                draws = True
            elif leaves_trace(node, module, training):
                tensors.update(dict.fromkeys(_buffers(path, module)))
                draws = True
        elif node.op in ("call_function", "call_method"):
            draws |= may_draw(node.target)
    return Moves(tuple(tensors), tuple(own), draws)


def _buffers(path: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    for inner, part in module.named_modules(prefix=path):
        if isinstance(part._buffers, dict):  # TorchScript keeps its own behind a wrapper
            yield from ((inner, name) for name in part._buffers)


class Undo:
    """The moment before a call.

    Args:
        registries: where each tensor that may change is, and its name there.
        modules: modules whose attributes may be set.
        draws: whether random numbers may be drawn.

    """

    def __init__(
        self,
        registries: Iterable[tuple[dict[str, Any], str]],
        modules: Iterable[nn.Module],
        draws: bool,
    ) -> None:
        self._copies = [
            (registry, name, tensor, tensor.detach().clone())
            for registry, name in registries
            if isinstance(tensor := registry.get(name), torch.Tensor)
        ]
        self._untouched = [Untouched(module) for module in modules]
        self._random = RandomState() if draws and not _is_capturing() else None

    def moved(self) -> list[tuple[dict[str, Any], str]]:
        """Return where the tensors are that have changed since."""
        return [
            (registry, name)
            for registry, name, tensor, copy in self._copies
            if registry.get(name) is not tensor or not identical(tensor, copy)
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        for untouched in self._untouched:
            untouched.restore()
        with torch.no_grad():
            for registry, name, tensor, copy in self._copies:
                registry[name] = tensor
                # Inference tensors count no versions.
                with nullcontext() if tensor.is_inference() else _compat.preserve_version(tensor):
                    tensor.copy_(copy)
        if self._random is not None:
            self._random.restore()


def _is_capturing() -> bool:
    """Say whether a CUDA graph is captured, while no generator may be looked at."""
    in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return in_use and torch.cuda.is_current_stream_capturing()
