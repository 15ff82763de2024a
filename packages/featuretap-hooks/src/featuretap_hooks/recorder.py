"""Watches one forward and says what each operation is called.

:class:`Recorder` is a torch-function mode: it sees functions, methods, operators and attribute
access. :mod:`.scopes` tells it which module's forward is running.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from featuretap._compat import functorch_level, no_torch_function
from featuretap.facts import writes_others, written_arguments
from featuretap.inspecting.containers import contains
from featuretap.modules import ModuleTree
from featuretap.names.operations import iterates_a_tensor, name_of
from featuretap.standins.volatile import LOOKS_AT_VALUE

from ._compat import calling_modules, graph_target, is_checkpointing
from .inspecting.instructions import formats_next, is_bookkeeping
from .inspecting.own_code import UNSEEN_WRITES
from .nodes import Nodes
from .origins import Origin
from .program import counts, name_of_function
from .sinks import Notes, Sink
from .tracked import CONSTANTS, plain

__all__ = ["Recorder"]

_ASSERT = torch._assert.__code__


class Recorder(Nodes, TorchFunctionMode):
    """Names the operations of one forward, in one thread.

    Args:
        tree: the modules of the model.
        sink: where nodes go.
        confined: whether only some modules tell when they run, so that an operation may belong to
            another module than the one that was entered last.
        notes: filled with what is only seen in a forward that is recorded in full.

    Attributes:
        aliases: the second names that were given to what the model keeps, by ``id``, and what they are of.

    """

    def __init__(
        self, tree: ModuleTree, sink: Sink, *, confined: bool, notes: Notes | None
    ) -> None:
        TorchFunctionMode.__init__(self)
        Nodes.__init__(self, tree, sink, confined=confined)
        self._notes = notes
        self.aliases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

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
        if is_bookkeeping(frame.f_code):
            return self._run_unnamed(func, args, kwargs)
        if name == "__get__":
            return self._attribute(func, args, frame)
        if name == "get_device" and is_checkpointing(frame):
            return func(*args, **kwargs)
        if name == "__bool__" and frame.f_code is _ASSERT:
            return self._assert(func, args)
        if name in ("dim", "unbind") and iterates_a_tensor(frame):
            value = func(*args, **kwargs)
            is_items = name == "unbind" and self._dependents.is_marked(args[0], self.scope)
            return self._track(value) if is_items else value
        is_of_sizes = name == "_assert" and self.answers > 0
        self.answers -= is_of_sizes
        given = (*args, *kwargs.values())
        self._dependents.tell_apart(given, frame, self.scope)
        if self.takes_part(given) or is_of_sizes:
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
        is_sized = self._dependents.are_sized((args, kwargs), self.scope)
        args, kwargs = plain(tuple(args)), plain(kwargs)
        self.busy = True
        try:
            value = func(*args, **kwargs)
        finally:
            self.busy = False
        written: list[Any] = []
        target, is_memory = graph_target(func), bool(args) and self._is_memory(args[0])
        if is_sized or is_memory or not args or "out" in kwargs or writes_others(target):
            written += written_arguments(target, args, kwargs)
            self._dependents.mark_written(written, self.scope)
        if not written:
            if is_memory and value is args[0]:
                value = self._not_given_back(value)
            elif type(value) in (tuple, list):
                value = type(value)(map(self._not_given_back, value))
        if is_sized and not written and _is_size(func, value):
            operation = None
        # What is returned by what wrote it is the same memory; ``to`` may give back what it took.
        is_sized = is_sized or (self._dependents.is_sized(value) and id(value) in map(id, written))
        name = None if operation is None else self._namer.operation(self.scope, operation)
        # Noted first: the forward ends where its last requested value is handed over.
        if counted and self._notes is not None:
            self._note(self._notes, func, given, value, name)
        if name is not None:
            maker = (func, args, kwargs) if counted else None
            return self._made(name, value, maker, is_sized=is_sized)
        if isinstance(value, torch.Tensor):
            self._dependents.mark(value)
        return value

    def _not_given_back(self, value: Any) -> Any:
        """Return another name of memory that an operation gives back: ``buffer.to(x.dtype)``.

        What the memory holds depends on nothing, and is used by its own name.
        """
        if type(value) is not torch.Tensor or not self._dependents.keeps(value):
            return value
        with no_torch_function():
            alias = value.view_as(value)
        self.aliases[id(alias)] = (alias, value)
        return alias

    def _run_unnamed(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        depends = self._dependents.sources((args, kwargs), self.scope, [])
        value = func(*plain(args), **plain(kwargs))
        if depends and contains(torch.Tensor, value):
            self._dependents.mark(value)
        return value

    def _assert(self, func: Callable[..., Any], args: Any) -> Any:
        """Look at a tensor for ``torch._assert``, which hands only what is no tensor to a mode."""
        is_node, value = self.takes_part(args), func(*args)
        if is_node and value:
            self._node(self._namer.operation(self.scope, "_assert"), None)
        return value

    def _is_memory(self, value: Any) -> bool:
        """Say whether ``value`` is of the model or of constants, and no result of the forward."""
        depends = self._dependents.is_result(value) or self._dependents.sources(
            value, self.scope, []
        )
        return not depends or self._dependents.is_sized(value)

    def _note(
        self, notes: Notes, func: Callable[..., Any], args: Any, value: Any, name: str | None
    ) -> None:
        """Note the place of an operation among the torch functions of its scope, and plain arguments."""
        if name is not None:
            given = [repr(a) for a in args if type(a) in (int, float, str)]
            notes.constants[name] = tuple(given)
        if counts(func, plain(value)):
            functions = notes.functions.setdefault(self.scope, [])
            number = len(functions)
            functions.append(name_of_function(func))
            if name is not None and self.scope not in self._uncounted:
                notes.places[name] = (self.scope, number)

    def _belongs(self, frame: types.FrameType) -> bool:
        """Whether the innermost module of the model that ``frame`` is in is the one that runs."""
        for module in calling_modules(frame):
            if module is self._module or self._tree.path_of(module) is not None:
                return module is self._module
        # In a ``__call__`` of the model's own, no module is called yet.
        return self._module is self._tree.model

    def _attribute(self, func: Callable[..., Any], args: Any, frame: types.FrameType) -> Any:
        attribute = func.__self__.__name__  # type: ignore[attr-defined]
        if attribute == "data":
            self._expose()
        value = func(*args)
        if not self._dependents.is_marked(args[0], self.scope):
            return value
        is_sized = self._dependents.are_sized(args, self.scope)
        if isinstance(value, torch.Tensor):
            self.use(args)
            name = self._namer.operation(self.scope, "getattr")
            return self._made(name, value, is_sized=is_sized)
        if is_sized and not isinstance(value, CONSTANTS):
            return value
        is_owner_used = not self._dependents.is_read(args[0])
        is_parameter = id(args[0]) in self._dependents.parameters
        parameter = args[0] if is_parameter or not is_owner_used else None
        origin = Origin(self, self.scope, pending=True, parameter=parameter)
        tracked = self._track(value, origin)
        if tracked is not value:
            return tracked
        if formats_next(frame):
            # What is put into a text now can be given no marks.
            self.use(parameter)
            self._node(self._namer.operation(self.scope, "getattr"), value)
        return value


def _is_size(func: Callable[..., Any], value: Any) -> bool:
    """Say whether what ``func`` returned tells something of its arguments besides their values."""
    is_value = getattr(func, "__name__", "") in LOOKS_AT_VALUE
    return not (is_value or contains(torch.Tensor, value))
