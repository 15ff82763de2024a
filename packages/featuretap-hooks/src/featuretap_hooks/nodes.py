"""Names what a forward computes, and hands it to a sink, value and name; it keeps nothing itself.

:mod:`.recorder` tells of operations, :mod:`.scopes` of modules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from featuretap._compat import functorch_level
from featuretap.inspecting.containers import contains
from featuretap.modules import ModuleTree
from featuretap.naming import Namer, join

from .dependents import Dependents
from .going_on import Maker
from .origins import Origin
from .sinks import Sink
from .tracked import Tracked, TrackedConstant, plain, track

__all__ = ["Nodes"]


class Nodes:
    """Names the operations of one forward, in one thread.

    Args:
        tree: the modules of the model.
        sink: where nodes go.
        confined: whether only some modules tell when they run, so that an operation may belong to
            another module than the one that was entered last.

    Attributes:
        scope: the path of the module whose forward runs.
        busy: whether something runs whose operations are none of the scope's.
        level: how deep the forward began in transforms of torch.func.
        is_live: whether it still names what it sees.
        has_tracked: whether something was given out that remembers where it came from.
        answers: how many comparisons of sizes no assertion has taken yet.

    """

    def __init__(self, tree: ModuleTree, sink: Sink, *, confined: bool) -> None:
        self._confined = confined
        self._tree = tree
        self._sink = sink
        self._namer = Namer(tree.reserved)
        self._dependents = Dependents(
            tree.parameter_names,
            tree.other_tensors,
            tree.find_storages,
            unknown_depend=confined,
        )
        self._read_parameters: set[str] = set()
        self._thread = threading.get_ident()
        self._module: nn.Module | None = None
        self.scope = ""
        self._inside = False
        self.busy = False
        self.is_live = True
        self._shared: dict[str, Sink] = {}
        self.level = functorch_level()
        # ``x.shape`` is given out pending; the sources of one forward share what can be shared.
        self._origins: dict[str, Origin] = {}
        self._uncounted: set[str] = set()
        self.has_tracked = False
        self.answers = 0

    # -- scopes ---------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether an operation made now, in this thread, is a node of a scope."""
        return (
            self._inside
            and not self.busy
            and self.is_live
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

    @property
    def went_deeper(self) -> bool:
        """Whether something has run inside of such a transform."""
        return bool(self._uncounted)

    def share(self, extractor: nn.Module, sink: Sink) -> bool:
        """Let an extractor inside the model have the nodes inside it, by the names it knows.

        Returns:
            Whether that is possible: only where everything is recorded, in its first call, and if no part
            of it has another path or was called before, so that names here are names there.

        """
        path = self._tree.path_of(extractor)
        if path is None or self._confined or not self.listening or path in self._shared:
            return False
        if any(self._tree.path_of(m) != join(path, p) for p, m in extractor.named_modules()):
            return False
        if path and self._namer.has_named_in(path):
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

    def _track(
        self, value: Any, origin: Origin | None = None, *, of_any_class: bool = False
    ) -> Any:
        self.has_tracked = True
        if origin is None:
            origin = self._origins.get(self.scope)
        if origin is None:
            origin = self._origins[self.scope] = Origin(self, self.scope)
        tracked = track(value, origin, of_any_class=of_any_class)
        if isinstance(tracked, TrackedConstant):
            self._dependents.remember(value, tracked, self.scope)
            return value
        return tracked

    def finish(self) -> None:
        """Stop listening for good; tracked values that live on are inert.

        What knows this recorder is let go, so that the features die with their last user.
        """
        self.is_live = False
        self._origins.clear()
        self._dependents.forget()

    # -- nodes ----------------------------------------------------------

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
            # Lists and dicts are the caller's own, and their type is often asked for.
            is_tuple = isinstance(value, tuple)
            is_number = type(value) in (int, float) and name not in fixed
            is_watched = is_tuple or is_number
            watched[name] = self._track(value, of_any_class=True) if is_watched else value
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
        return self._track(value, of_any_class=True) if self.listening else None

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
        is_result, has_results = self._dependents.is_settled_result, False
        for value in values:
            # Most are, and need nothing more.
            if type(value) is torch.Tensor and is_result(value):
                has_results = True
            else:
                self._dependents.sources(value, self.scope, sources)
        if len(sources) > 1:
            # As in fx: what is read of tensors comes first, a parameter with the operation itself.
            sources.sort(key=lambda source: not self._is_read(source))
        for source in sources:
            self._use(source)
        return has_results or bool(sources)

    def _is_read(self, source: Any) -> bool:
        return issubclass(type(source), Tracked) or self._dependents.is_read(source)

    def _use(self, source: Any) -> None:
        if self._dependents.is_read(source):
            self._dependents.note_used(source)
            self._node(self._namer.operation(self.scope, "getattr"), source)
        elif isinstance(source, Tracked):
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

    def field(self, value: Any, source: Any) -> Any:
        """Note that ``value`` was read of the named tuple ``source``: a node once it is used, as in fx."""
        if not isinstance(value, torch.Tensor) or self._dependents.is_sized(value):
            return self.derive("getattr", value, source)
        self.use(source)
        self._dependents.note_read(value)
        return value

    def derive(self, operation: str, value: Any, *sources: Any) -> Any:
        """Record what was computed from tracked values."""
        self.use(sources)
        # Nothing tells this ``True`` from another: an assertion that follows is taken to be of it.
        self.answers += type(value) is bool
        name = self._namer.operation(self.scope, operation)
        is_sized = self._dependents.is_sized(value)
        return self._made(name, value, is_sized=is_sized, of_any_class=True)

    def _made(
        self,
        name: str,
        value: Any,
        maker: Maker = None,
        *,
        is_sized: bool = False,
        of_any_class: bool = False,
    ) -> Any:
        changed = self._node(name, value, maker)
        value = value if changed is None else changed
        if not is_sized:
            self._dependents.mark(value)
            is_tensor = type(value) is torch.Tensor
            return value if is_tensor else self._track(value, of_any_class=of_any_class)
        self._dependents.mark_sized(value, self.scope)
        if isinstance(value, (tuple, list)) and contains(torch.Tensor, value):
            # As in fx, which has the items at hand and makes nodes of them all.
            for item in value:
                if contains(torch.Tensor, item):
                    self._made(self._namer.operation(self.scope, "getitem"), item, is_sized=True)
            return value
        return value if isinstance(value, torch.Tensor) else self._track(value)

    def _expose(self) -> None:
        for sink in (self._sink, *self._shared.values()):
            sink.expose()
