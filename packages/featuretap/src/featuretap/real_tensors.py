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

from . import _compat
from .facts import may_draw, written_arguments
from .faithful import contains
from .held import tensors_in as tensors_held
from .identity import is_compared_next
from .inplace import effect_of
from .modules import ModuleTree
from .operations import name_of
from .refused import called_by_model
from .saved import SavedTensors
from .sizes import Sizes, tensors_in
from .texts import TEXT, makes_a_text

if TYPE_CHECKING:
    from .tracing import FeatureTracer

__all__ = ["ASSIGNED", "GENERATOR", "LOOKS_AT_VALUE", "RealTensors"]

LOOKS_AT_VALUE = frozenset(
    "item tolist numpy __array__ __bool__ __int__ __float__ __index__ __complex__ "
    "__contains__ is_nonzero equal allclose".split()
)

_ESCAPES = frozenset("__dlpack__ __array__ numpy apply_ map_ map2_".split())
_OF_KIND = frozenset({"dtype", "device"})
_SWITCHED = frozenset({"requires_grad", "grad", "grad_fn", "is_leaf"})
_TEXTS = frozenset({"__repr__", "__format__"})
LOOKED_AT = (
    "{}() looks at the value of a buffer, a parameter or a random number, or at what is computed of "
    "these or of the inputs, which may be another one in the next call"
)
UNSEEN = (
    "the forward runs {} in a way that no graph can record (compiled code, a transform of torch.func, a "
    "tensor made of another by its class), with a tensor whose value may be another one in the next call"
)
OF_ANOTHER = (
    "the forward makes a tensor in the memory of another in a way that no graph can record "
    "(nn.Parameter(t), t.as_subclass(...), from_dlpack)"
)
ESCAPES = "the forward leaves torch by {}(), where a graph does not follow"
TRANSFORMED = (
    "the forward runs a transform of torch.func, which no graph can record, on real tensors"
)
GENERATOR = "the forward draws from a torch.Generator of its own, which a graph cannot hold"
COMPARED = "the forward compares .{} of a tensor of the model, which .to() may change"
FROZEN = (
    "the forward asks for .{} of a tensor that the model keeps or that was written, which may be "
    "another one in the next call"
)
ASSIGNED = "assignment to an attribute of a tensor cannot be recorded"
_KINDS = (torch.dtype, torch.device)


class RealTensors:
    """The graph nodes of real tensors, one for each."""

    def __init__(self, tracer: FeatureTracer, tree: ModuleTree, saved: SavedTensors) -> None:
        self._tracer = tracer
        self._tree = tree
        self._saved = saved
        self._nodes: dict[int, fx.Node] = {}
        self._parameters: dict[int, fx.Proxy] = {}
        self._made: set[int] = set()
        # Storages whose values may be others in the next call, or are not those of the forward even now.
        self._volatile: set[int] = set()
        # Of what the forward made, or found outside of the model.
        self._storages: set[int] = set()
        self.by_node: dict[fx.Node, torch.Tensor] = {}
        self._runs = False
        self._sizes = Sizes()
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
            if name is None:
                if self._is_of_another(tensor):
                    raise self._tracer.refusal(OF_ANOTHER)
                constants = self._tracer.recording.constants
                name = f"_tensor_constant{len(constants)}"
                constants[name] = tensor
            node = self._tracer.create_node("get_attr", name, (), {})
            self._remember(tensor, node)
        return node

    def _is_of_another(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor was made, by nothing that was recorded, in the memory of a known one."""
        storage = _compat.storage_id(tensor)
        if storage not in self._storages and storage not in self._tree.storages:
            return False
        held = (kept for module in self._tree.paths.values() for kept in tensors_held(module))
        return all(kept is not tensor for kept in held)

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any, frame: types.FrameType) -> Any:
        """Run ``func`` for real and record it, if it made or wrote a tensor.

        Raises:
            torch.fx.proxy.TraceError: if ``func`` looks at a value that may differ in later calls.

        """
        name = getattr(func, "__name__", "")
        asked = func.__self__.__name__ if name == "__get__" else name  # type: ignore[attr-defined]
        volatile = [id(tensor) for tensor in tensors_in(args, kwargs) if self._is_volatile(tensor)]
        reason = self._why_not(name, args, kwargs, volatile)
        reason = reason or self._why_not_ask(asked, args, frame, volatile)
        reason = reason or self._sizes.why_not(asked, args, kwargs, volatile)
        if reason is not None:
            raise self._tracer.refusal(reason)
        kind, target, graph_args = _as_graph_call(func, args)
        found = written_arguments(target, graph_args, kwargs)
        written = [argument for argument in found if isinstance(argument, torch.Tensor)]
        with contextlib.ExitStack() as unseen:
            for tensor in written:
                for owner in self._existed_before(tensor):
                    self._saved.save(owner)
                    unseen.enter_context(_compat.preserve_version(owner))
            result = func(*args, **kwargs)
        if name == "__get__" and isinstance(result, _KINDS):
            self._read_off[self._key(result)] = (args[0], asked, result)
        if written or contains(torch.Tensor, result):
            drawn = may_draw(target)
            self._saved.drew_random_numbers |= drawn
            is_volatile = drawn or bool(volatile)
            node = self._record((kind, target, graph_args, kwargs), is_volatile)
            if node is not None:
                node.meta["featuretap_operation"] = name_of(func, frame)
                self._remember_result(result, node)
                self._sizes.note(name, args, kwargs, volatile, result)
                if is_volatile:
                    self._volatile.update(map(_compat.storage_id, tensors_in(result, written)))
        return result

    def _why_not(self, name: str, args: Any, kwargs: Any, volatile: list[int]) -> str | None:
        """Name the reason why a function must not be run, if there is one."""
        if contains(torch.Generator, args, kwargs):
            return GENERATOR
        if name == "__set__":
            return ASSIGNED
        if volatile and name in LOOKS_AT_VALUE:
            return LOOKED_AT.format(name)
        if name in _ESCAPES:
            return ESCAPES.format(name)
        if _compat.functorch_level() is not None:
            return TRANSFORMED
        return None

    def _why_not_ask(
        self, asked: str, args: Any, frame: types.FrameType, volatile: list[int]
    ) -> str | None:
        """Name the reason why this must not be asked of ``args[0]``, which may change, if there is one."""
        if not volatile:
            return None
        if asked in _TEXTS:
            return TEXT if makes_a_text(frame) else None
        if not called_by_model(frame):
            return None
        if asked in _SWITCHED:
            return FROZEN.format(asked)
        if asked == "type" and len(args) == 1:
            return COMPARED.format("type()")
        if asked in _OF_KIND and is_compared_next(frame):
            return COMPARED.format(asked)
        return None

    def why_not_unseen(self, func: Any, args: Any, kwargs: Any) -> str | None:
        """Name the reason why an operation that is not recorded must not be run, if there is one."""
        tensors = list(tensors_in(args, kwargs))
        if func._schema.is_mutable:
            known = {
                _compat.storage_id(tensor) for tensor in self._alive
            } | self._tree.storages.keys()
            if not known.isdisjoint(map(_compat.storage_id, tensors)):
                return UNSEEN.format(func)
        if any(map(self._is_volatile, tensors)) or _compat.is_random(func):
            return UNSEEN.format(func)
        return None

    def note_effect(self, node: fx.Node, module: nn.Module | None) -> None:
        """Note the real tensors that a node writes, or is a view of, and that is recorded without them.

        Args:
            node: it.
            module: the module that it calls, if any.

        """
        if self._runs or self.by_node.keys().isdisjoint(node.all_input_nodes):
            return
        effect = effect_of(node, module)
        for argument in (*effect.writes, *effect.shares):
            if isinstance(argument, fx.Node) and argument in self.by_node:
                self._volatile.add(_compat.storage_id(self.by_node[argument]))

    def note_resized(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Note the real tensors to which a call that is only recorded may give another size."""
        self._alive += self._sizes.note_resized(getattr(func, "__name__", ""), args, kwargs)

    def watch_memory(self) -> None:
        """Keep what the model holds, which a forward may give other memory."""
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
        return (self._tracer.scope_path, kind) if isinstance(kind, torch.dtype) else id(kind)

    def _existed_before(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors older than the trace that a write to ``tensor`` changes."""
        owners = self._tree.storages.get(_compat.storage_id(tensor))
        return owners or ([] if id(tensor) in self._made else [tensor])

    def forget(self, erased: set[fx.Node]) -> None:
        """Drop what was remembered of nodes that are gone."""
        for key in [key for key, node in self._nodes.items() if node in erased]:
            self.by_node.pop(self._nodes.pop(key), None)
        for key in [key for key, proxy in self._parameters.items() if proxy.node in erased]:
            del self._parameters[key]

    def _is_volatile(self, tensor: torch.Tensor) -> bool:
        if id(tensor) not in self._made and id(tensor) in self._tree.tensor_names:
            return True
        return bool(self._volatile) and _compat.storage_id(tensor) in self._volatile

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
            storage = node.meta["featuretap_storage"] = _compat.storage_id(tensor)
            if node.op != "get_attr" or node.target in self._tracer.recording.constants:
                self._storages.add(storage)
            self.by_node[node] = tensor


def _as_graph_call(func: Callable[..., Any], args: Any) -> tuple[str, Any, tuple[Any, ...]]:
    """Say how ``func`` is written in a graph: as a method, a property or a function."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "call_function", getattr, (args[0], func.__self__.__name__)  # type: ignore[attr-defined]
    if _compat.is_method(func):
        return "call_method", name, args
    return "call_function", func, args
