"""Real tensors met while tracing: buffers, constants, and what is computed from them.

They stay real, so the model's Python may look at their shapes; and each operation on them is
recorded, so that it runs again on every call: a buffer loaded later counts, a random number is
drawn anew. Only looking at the *value* of such a tensor is refused, for a graph cannot branch.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from operator import getitem
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from .. import _compat
from ..facts import may_draw, returns_itself, written_arguments
from ..graphs import meta_keys
from ..inspecting.containers import contains, instances_in
from ..keeping.held import tensors_in
from ..keeping.saved import SavedTensors
from ..modules import ModuleTree
from ..names.operations import name_of
from ..refusals.left_there import Leaves
from ..trace.indexing import is_method
from .volatile import ASSIGNED, Volatile

if TYPE_CHECKING:
    from ..tracing import FeatureTracer

__all__ = ["RealTensors"]

_OF_ANOTHER = (
    "the forward makes a tensor in the memory of another in a way that no graph can record "
    "(nn.Parameter(t), t.as_subclass(...), from_dlpack)"
)
_LEFT = (
    "the forward uses a tensor that it finds in an attribute or a container, and {!r}, which is one node "
    "(it has hooks, or cannot be traced), may leave another one there in each call"
)
_LEFT_BY_HOOK = "the forward looks at {!r}, which a hook may set or fill in each call"
_KINDS = (torch.dtype, torch.device)


class RealTensors:
    """The graph nodes of real tensors, one for each.

    Attributes:
        by_node: the tensor that each of them stands for.
        leaves: the modules that are one node.

    """

    def __init__(self, tracer: FeatureTracer, tree: ModuleTree, saved: SavedTensors) -> None:
        self._tracer = tracer
        self._tree = tree
        self._saved = saved
        self._nodes: dict[int, fx.Node] = {}
        self.leaves = Leaves()
        self._parameters: dict[int, fx.Proxy] = {}
        self._made: set[int] = set()
        self._volatile = Volatile(tree, self._made)
        # Of what the forward made, or found outside of the model.
        self._storages: set[int] = set()
        self.by_node: dict[fx.Node, torch.Tensor] = {}
        self._runs = False
        # An id means something only as long as its tensor lives.
        self._alive: list[torch.Tensor] = []
        self._read_off: dict[Any, tuple[torch.Tensor, str, Any]] = {}

    def parameter(self, parameter: nn.Parameter) -> Any:
        """Return the stand-in of a parameter of the model, or a foreign parameter itself."""
        proxy = self._parameters.get(id(parameter))
        if proxy is None:
            if id(parameter) not in self._tree.parameter_names:
                return parameter
            proxy = self._tracer.proxy(self.node(parameter))
            self._parameters[id(parameter)] = proxy
        return proxy

    def node(self, tensor: torch.Tensor) -> fx.Node:
        """Return the node of a real tensor: its place in the model, or a constant of the graph."""
        node = self._nodes.get(id(tensor))
        if node is None:
            name = self._tree.tensor_names.get(id(tensor))
            if not self._tree.is_registered(name):
                self._check_left()
            if name is None:
                if self._is_of_another(tensor):
                    raise self._tracer.refusal(_OF_ANOTHER)
                constants = self._tracer.recording.constants
                name = f"_tensor_constant{len(constants)}"
                constants[name] = tensor
            node = self._tracer.create_node("get_attr", name, (), {})
            self._remember(tensor, node)
        return node

    def _check_left(self) -> None:
        """Refuse what lies where a leaf may put another one in each call: in an attribute, a container."""
        leaf = self.leaves.that_may_leave_tensors
        if leaf:
            raise self._tracer.refusal(_LEFT.format(leaf))

    def check_found(self) -> None:
        """Refuse the same of what was used before such a leaf was called, and what was not there yet."""
        left = self.leaves.left_by_hooks(self._tree.paths.values())
        if left:
            raise self._tracer.refusal(_LEFT_BY_HOOK.format(left))
        names = [str(node.target) for node in self.by_node if node.op == "get_attr"]
        if not all(map(self._tree.is_registered, names)):
            self._check_left()

    def _is_of_another(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor was made, by nothing that was recorded, in the memory of a known one."""
        storage = _compat.storage_id(tensor)
        if storage not in self._storages and storage not in self._tree.storages:
            return False
        held = (kept for module in self._tree.paths.values() for kept in tensors_in(module))
        return all(kept is not tensor for kept in held)

    # -- what the modes show while tracing ------------------------------------------------------

    def record_function(
        self, func: Callable[..., Any], args: Any, kwargs: Any, frame: types.FrameType
    ) -> fx.Proxy | torch.Tensor:
        """Record a torch function or method called with a Proxy.

        What a method in place returns is the tensor itself, also where that is a real one.
        """
        name, tracer = func.__name__, self._tracer
        if name == "__set__":
            raise tracer.refusal(ASSIGNED)
        self._alive += self._volatile.sizes.note_resized(name, args, kwargs)
        if is_method(func):
            proxy = tracer.create_proxy("call_method", name, args, kwargs)
            # An operator on a real tensor: ``torch.zeros(4) / x``.
            proxy.node.meta[meta_keys.OPERATION] = name_of(func, frame)
            is_same = isinstance(args[0], torch.Tensor) and returns_itself(name)
            return args[0] if is_same else proxy
        return tracer.create_proxy("call_function", func, args, kwargs)

    def run_real(
        self, func: Callable[..., Any], args: Any, kwargs: Any, frame: types.FrameType
    ) -> Any:
        """Run ``func`` for real and record it, if it made or wrote a tensor: it runs on every call.

        Raises:
            torch.fx.proxy.TraceError: if ``func`` looks at a value that may differ in later calls.

        """
        volatile = self._volatile.among(args, kwargs)
        reason = self._volatile.why_not(func, args, kwargs, frame, volatile)
        if reason is not None:
            raise self._tracer.refusal(reason)
        name = getattr(func, "__name__", "")
        kind, target, graph_args = _as_graph_call(func, args)
        found = written_arguments(target, graph_args, kwargs)
        written = [argument for argument in found if isinstance(argument, torch.Tensor)]
        with contextlib.ExitStack() as unseen:
            for tensor in written:
                for owner in self._existed_before(tensor):
                    self._saved.save(owner)
                    unseen.enter_context(_compat.preserve_version(owner))
            result = func(*args, **kwargs)
        if target is getattr and isinstance(result, _KINDS):
            self._read_off[self._key(result)] = (args[0], graph_args[1], result)
        if written or contains(torch.Tensor, result):
            drawn = may_draw(target)
            self._saved.drew_random_numbers |= drawn
            is_volatile = drawn or bool(volatile)
            node = self._record((kind, target, graph_args, kwargs), is_volatile)
            if node is not None:
                node.meta[meta_keys.OPERATION] = name_of(func, frame)
                self._remember_result(result, node)
                self._volatile.sizes.note(name, args, kwargs, volatile, result)
                if is_volatile:
                    self._volatile.add(instances_in(torch.Tensor, result, written))
        return result

    def check_unseen(self, func: Any, args: Any, kwargs: Any) -> None:
        """Raise if a graph would lose what an operation does that no torch function stands for."""
        reason = self._volatile.why_not_unseen(func, args, kwargs, self._alive)
        if reason is not None:
            raise self._tracer.refusal(reason)

    def note_effect(self, node: fx.Node, module: nn.Module | None) -> None:
        """Note what a node, which may call ``module``, does to real tensors that are not run with it."""
        if self.by_node and not self._runs:
            self._volatile.add_affected(node, module, self.by_node)

    def watch_memory(self) -> None:
        """Keep what the model holds, which a forward may give other memory."""
        # Seen by the mode of the trace, a copy might import half of torch.
        with _compat.no_torch_function():
            for tensors in self._tree.storages.values():
                for tensor in tensors:
                    self._saved.save(tensor)

    def check_memory(self) -> None:
        """Refuse that something which the model holds has other memory now."""
        if self._saved.has_other_memory:
            raise self._tracer.refusal("the forward resizes or exchanges memory of the model's own")

    def read_off(self, kind: torch.dtype | torch.device) -> Any:
        """Return the node of a dtype or device that was read off a real tensor, which may be moved.

        A device is told by identity, for torch makes a new object at each read; a dtype by value,
        within the scope that read it.
        """
        found = self._read_off.get(self._key(kind))
        if found is None:
            return kind
        tensor, attribute, _ = found
        return self._tracer.create_node(
            "call_function", getattr, (self.node(tensor), attribute), {}
        )

    def _key(self, kind: torch.dtype | torch.device) -> Any:
        return (self._tracer.place.scope, kind) if isinstance(kind, torch.dtype) else id(kind)

    def _existed_before(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors older than the trace that a write to ``tensor`` changes."""
        storage = _compat.storage_id(tensor)
        owners = self._tree.storages.get(storage)
        if owners is None and id(tensor) not in self._made:
            return [tensor]
        # A view of one that was found in a list, say.
        found = (t for node, t in self.by_node.items() if node.op == "get_attr")
        return owners or [t for t in found if _compat.storage_id(t) == storage]

    def forget(self, erased: set[fx.Node]) -> None:
        """Drop what was remembered of nodes that are gone."""
        for key in [key for key, node in self._nodes.items() if node in erased]:
            self.by_node.pop(self._nodes.pop(key), None)
        for key in [key for key, proxy in self._parameters.items() if proxy.node in erased]:
            del self._parameters[key]

    def _record(self, call: tuple[str, Any, Any, Any], volatile: bool) -> fx.Node | None:
        kind, target, args, kwargs = call
        tracer = self._tracer
        try:
            args, kwargs = tracer.create_arg(tuple(args)), tracer.create_arg(dict(kwargs))
        except NotImplementedError as error:
            # What cannot be written into a graph stays a constant, unless it must not.
            if volatile:
                raise self._tracer.refusal(f"{target} cannot be recorded: {error}") from error
            return None
        self._runs = True
        try:
            return tracer.create_node(kind, target, args, kwargs)
        finally:
            self._runs = False

    def _remember_result(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, torch.Tensor):
            if id(result) not in self._nodes:
                self._made.add(id(result))
                self._remember(result, node)
        elif isinstance(result, (tuple, list)):
            for index, item in enumerate(result):
                if contains(torch.Tensor, item):
                    part = self._tracer.create_node("call_function", getitem, (node, index), {})
                    self._remember_result(item, part)

    def _remember(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        if id(tensor) not in self._tree.parameter_names:
            storage = node.meta[meta_keys.STORAGE] = _compat.storage_id(tensor)
            if node.op != "get_attr" or node.target in self._tracer.recording.constants:
                self._storages.add(storage)
            self.by_node[node] = tensor


def _as_graph_call(func: Callable[..., Any], args: Any) -> tuple[str, Any, tuple[Any, ...]]:
    """Say how ``func`` is written in a graph: as a method, a property or a function."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "call_function", getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
    if is_method(func):
        return "call_method", name, args
    return "call_function", func, args
