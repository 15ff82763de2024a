"""Watches one forward and says what each operation is called.

:class:`Recorder` is a torch-function mode: it sees functions, methods, operators and attribute
access. :mod:`.scopes` tells it which module's forward is running. What it finds it hands to a sink,
value and name; it keeps nothing itself.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featuretap.facts import written_arguments
from featuretap.modules import ModuleTree
from featuretap.naming import Namer
from featuretap.operations import iterates_a_tensor, name_of

from ._compat import calling_modules, functorch_level, graph_target, is_checkpointing
from .compiling import counts
from .dependents import Dependents
from .going_on import Maker
from .instructions import formats_next
from .own_code import UNSEEN_WRITES
from .sinks import Notes, Sink
from .tracked import Origin, Tracked, TrackedConstant, plain, track

__all__ = ["Recorder"]


class Recorder(TorchFunctionMode):
    """Names the operations of one forward, in one thread.

    Args:
        tree: the modules of the model.
        sink: where nodes go.
        confined: whether only some modules tell when they run, so that an operation may belong to
            another module than the one that was entered last.
        notes: filled with what is only seen in a forward that is recorded in full.

    Attributes:
        scope: the path of the module whose forward runs.
        busy: whether something runs whose operations are none of the scope's.
        has_tracked: whether something was given out that remembers where it came from.

    """

    def __init__(
        self, tree: ModuleTree, sink: Sink, *, confined: bool = False, notes: Notes | None = None
    ) -> None:
        super().__init__()
        self._confined = confined
        self._notes = notes
        self._tree = tree
        self._sink = sink
        self._namer = Namer(tree.reserved)
        self._dependents = Dependents(
            tree.parameter_names,
            tree.other_tensors,
            unknown_depend=confined,
        )
        self._read_parameters: set[str] = set()
        self._thread = threading.get_ident()
        self._module: nn.Module | None = None
        self.scope = ""
        self._inside = False
        self.busy = False
        self._live = True
        self._shared: dict[str, Sink] = {}
        self.level = functorch_level()
        self._counted: dict[str, int] = {}
        # ``x.shape`` is given out pending; the sources of one forward share what can be shared.
        self._origins: dict[str, Origin] = {}
        self._uncounted: set[str] = set()
        self.has_tracked = False

    # -- scopes ---------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether an operation made now, in this thread, is a node of a scope."""
        return (
            self._inside
            and not self.busy
            and self._live
            and functorch_level() == self.level
            and threading.get_ident() == self._thread
        )

    @property
    def is_deeper(self) -> bool:
        """Whether the forward is inside of a transform of ``torch.func`` of its own."""
        return functorch_level() != self.level

    def go_deeper(self) -> None:
        """Know that something runs inside of such a transform, where nothing is a node."""
        self._uncounted.add(self.scope)
        self._dependents.unknown_depend = True

    @property
    def foreign(self) -> set[str]:
        """Scopes that cannot be recorded alone: they use constants that were made elsewhere."""
        return self._dependents.foreign

    def share(self, extractor: nn.Module, sink: Sink) -> bool:
        """Let an extractor inside the model have the nodes inside it, by the names it knows.

        Returns:
            Whether that is possible: only where everything is recorded, and in its first call.

        """
        path = self._tree.path_of(extractor)
        if path is None or self._confined or not self.listening or path in self._shared:
            return False
        self._shared[path] = sink
        return True

    def enter_scope(self, module: nn.Module, scope: str | None) -> None:
        """Begin with a forward; the scope is ``None`` inside of a leaf module, where nothing is a node."""
        if scope is not None:
            self._dependents.enter(module, scope)
        self.move_to(module, scope)

    def move_to(self, module: nn.Module | None, scope: str | None) -> None:
        """Be where the forward is."""
        self._module, self.scope, self._inside = module, scope or "", scope is not None

    def _track(self, value: Any) -> Any:
        self.has_tracked = True
        origin = self._origins.get(self.scope)
        if origin is None:
            origin = self._origins[self.scope] = Origin(self, self.scope)
        tracked = track(value, origin)
        if isinstance(tracked, TrackedConstant):
            self._dependents.remember(value, tracked, self.scope)
            return value
        return tracked

    def finish(self) -> None:
        """Stop listening for good; tracked values that live on are inert.

        What knows this recorder is let go, so that the features die with their last user.
        """
        self._live = False
        self._origins.clear()
        self._dependents.forget()

    # -- nodes that are no torch function ----------------------------------------------------------

    def inputs(self, arguments: dict[str, Any], fixed: Sequence[str]) -> dict[str, Any]:
        """Name the arguments of the model, and return them marked.

        Args:
            arguments: the value of each argument.
            fixed: arguments whose default chooses a branch; what is computed from such a value alone is
                no node.

        """
        watched: dict[str, Any] = {}
        for name, value in arguments.items():
            self._node(self._namer.operation("", name), value)
            self._dependents.mark(value)
            is_tuple = isinstance(value, tuple)
            is_number = type(value) in (int, float) and name not in fixed
            watched[name] = self._track(value) if is_tuple or is_number else value
        return watched

    def mark(self, value: Any) -> None:
        """Mark tensors as inputs that have no name of their own."""
        self._dependents.mark(value)

    def enter_leaf(self, path: str, args: Any, kwargs: Any) -> str | None:
        """Name a call of a leaf module; ``None`` if it is no node."""
        is_usual = len(args) == 1 and not kwargs and self._dependents.is_result(args[0])
        if (
            is_usual
            or self.takes_part((*args, *kwargs.values()))
            or path in self._tree.with_parameters
        ):
            return self._namer.module(path)
        return None

    def enter_call(self, path: str) -> str:
        """Name a call of a module that is looked into."""
        return self._namer.module(path)

    def leave_leaf(self, name: str | None, value: Any, module: nn.Module) -> Any:
        """Hand over what a leaf returned; return what stands for it if its items must be known."""
        if name is None:
            return None
        hand_over = self._node if self._shared else self._sink.node
        changed = hand_over(name, value, module)
        self._dependents.mark(value if changed is None else changed)
        if type(value) is torch.Tensor:
            return changed
        return self._track(value) if self.listening else None

    def leave_call(self, name: str, value: Any, module: nn.Module) -> None:
        """Hand over what a module that was looked into returned."""
        self._sink.call(name, plain(value), module)
        for path, sink in self._shared.items():
            if name != path and (not path or name.startswith(f"{path}.")):
                sink.call(name[len(path) + 1 :] if path else name, plain(value), module)

    def _node(self, name: str, value: Any, maker: Maker = None) -> Any:
        """Hand over a node; return a copy of its value if the forward must go on with that."""
        changed = self._sink.node(name, value, maker)
        for path, sink in self._shared.items():
            if not path or name.startswith(f"{path}."):
                sink.node(name[len(path) + 1 :] if path else name, value)
        return changed

    def use(self, value: Any) -> None:
        """Make nodes of what an operation takes: pending attributes, leaf by leaf."""
        self.takes_part((value,))

    def takes_part(self, values: Iterable[Any]) -> bool:
        """Whether what uses these values depends on the model; if so, they become nodes."""
        sources: list[Any] = []
        for value in values:
            self._dependents.sources(value, self.scope, sources)
        for source in sources:
            self._use(source)
        return bool(sources)

    def _use(self, source: Any) -> None:
        if isinstance(source, Tracked):
            if source._origin.scope != self.scope:
                self._dependents.foreign.add(self.scope)
            if source._origin.pending and source._origin.recorder is self:
                source._origin.pending = False
                self.use(source._origin.parameter)
                self._node(self._namer.operation(self.scope, "getattr"), plain(source))
        else:
            path = self._dependents.parameters.get(id(source))
            if path is not None and path not in self._read_parameters:
                self._read_parameters.add(path)
                self._node(self._namer.operation("", path), source)

    def derive(self, operation: str, value: Any, *sources: Any) -> Any:
        """Record what was computed from tracked values."""
        self.use(sources)
        return self._made(self._namer.operation(self.scope, operation), value)

    def _made(self, name: str, value: Any, maker: Maker = None) -> Any:
        changed = self._node(name, value, maker)
        value = value if changed is None else changed
        self._dependents.mark(value)
        return self._track(value)

    def _expose(self) -> None:
        for sink in (self._sink, *self._shared.values()):
            sink.expose()

    # -- torch functions --------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and record it if it is a node of the scope that runs."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in UNSEEN_WRITES and not self.busy:
            self._expose()
        if not self.listening:
            if functorch_level() != self.level:
                self.go_deeper()
            return func(*args, **kwargs)
        frame = sys._getframe(1)
        if self._confined and not self._belongs(frame):
            return func(*args, **kwargs)
        if name == "__get__":
            return self._attribute(func, args, frame)
        if name == "get_device" and is_checkpointing(frame):
            return func(*args, **kwargs)
        if name in ("dim", "unbind") and iterates_a_tensor(frame):
            value = func(*args, **kwargs)
            is_items = name == "unbind" and self._dependents.is_marked(args[0], self.scope)
            return self._track(value) if is_items else value
        if self.takes_part((*args, *kwargs.values())) or name == "_assert":
            return self.run(name_of(func, frame), func, args, kwargs, counted=True)
        value = func(*args, **kwargs)
        self._dependents.note_independent(value, self.scope)
        if self._notes is not None:
            self._note(self._notes, func, args, value, None)
        return value

    def run(
        self,
        operation: str | None,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        *,
        counted: bool = False,
    ) -> Any:
        """Run ``func`` on real values, and record it as one node.

        Args:
            operation: what it is called; ``None`` if it is no node.
            func: what is run.
            args: its arguments.
            kwargs: its keyword arguments.
            counted: whether a mode is shown it in compiled code too.

        """
        given = args
        args, kwargs = plain(tuple(args)), plain(kwargs)
        self.busy = True
        try:
            value = func(*args, **kwargs)
        finally:
            self.busy = False
        if "out" in kwargs or (args and not self._dependents.sources(args[0], self.scope, [])):
            for written in written_arguments(graph_target(func), args, kwargs):
                self._dependents.mark_written(written, self.scope)
        name = None if operation is None else self._namer.operation(self.scope, operation)
        # Noted first: the forward ends where its last requested value is handed over.
        if counted and self._notes is not None:
            self._note(self._notes, func, given, value, name)
        if name is not None:
            return self._made(name, value, (func, args, kwargs) if counted else None)
        if isinstance(value, torch.Tensor):
            self._dependents.mark(value)
        return value

    def _note(
        self, notes: Notes, func: Callable[..., Any], args: Any, value: Any, name: str | None
    ) -> None:
        """Note the place of an operation among the torch functions of its scope, and plain arguments."""
        if name is not None:
            given = [repr(a) for a in args if type(a) in (int, float, str)]
            notes.constants[name] = tuple(given)
        if counts(func, plain(value)):
            number = self._counted[self.scope] = self._counted.get(self.scope, -1) + 1
            if name is not None and self.scope not in self._uncounted:
                notes.places[name] = (self.scope, number)

    def _belongs(self, frame: types.FrameType) -> bool:
        """Whether the innermost module of the model that ``frame`` is in is the one that runs."""
        for module in calling_modules(frame):
            if self._tree.path_of(module) is not None:
                return module is self._module
        return False

    def _attribute(self, func: Callable[..., Any], args: Any, frame: types.FrameType) -> Any:
        attribute = func.__self__.__name__  # type: ignore[attr-defined]
        if attribute == "data":
            self._expose()
        value = func(*args)
        if not self._dependents.is_marked(args[0], self.scope):
            return value
        if isinstance(value, torch.Tensor):
            self.use(args)
            return self._made(self._namer.operation(self.scope, "getattr"), value)
        parameter = args[0] if id(args[0]) in self._dependents.parameters else None
        self.has_tracked = True
        tracked = track(value, Origin(self, self.scope, pending=True, parameter=parameter))
        if isinstance(tracked, TrackedConstant):
            self._dependents.remember(value, tracked, self.scope)
        elif tracked is not value:
            return tracked
        if formats_next(frame):
            # What is put into a text now can be given no marks.
            self.use(parameter)
            self._node(self._namer.operation(self.scope, "getattr"), value)
        return value
