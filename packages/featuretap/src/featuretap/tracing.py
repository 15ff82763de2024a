"""The fx tracer: run the model's Python once on stand-ins and record what it does.

:class:`FeatureTracer` extends :class:`torch.fx.Tracer` in these places::

    FeatureTracer.trace_once
      +-- create_args_for_root     placeholders by argument name; constants and defaults fixed
      +-- call_module              scopes, leaf modules, modules that become leaves by themselves
      +-- getattr                  parameters are read through the graph
      +-- create_arg               real tensors get one node each, never an attribute on the model
      +-- create_node              every node remembers its scope and the regions it was made in
      +-- proxy                    stand-ins that keep in-place statements, and answer questions
      +-- to_bool, iter            refused, see :class:`.RefusingTracer`

What comes out is a :class:`Recording`: the graph and the events (nodes, and calls of modules
that were looked into) in execution order. Names are given afterwards, in :mod:`.recording`.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from itertools import islice
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from . import _compat
from .backends import Options
from .faithful import Guard
from .graphs.structures import freeze
from .inspecting.catching import is_caught
from .inspecting.reading import forward_of
from .inspecting.whose import is_of_torch
from .keeping.carry_over import CarryOver
from .keeping.saved import SavedTensors
from .keeping.untouched import Untouched
from .messages import location_of, untraceable
from .modules import LeafRule, ModuleTree, keeps_nothing
from .recording import Recording
from .refusals.refusing import RefusingTracer
from .refusals.why_not import CATCHES, GIVEN_MODULE, why_not_look_into, why_not_record
from .signatures import has_own_call
from .standins.asked_types import AskedTypes
from .standins.asking import Questions, asked_in_held, questions_of
from .standins.identity import asks_identity
from .standins.placeholders import root_arguments
from .standins.proxies import FeatureProxy, is_overtaken, node_of
from .standins.real_tensors import RealTensors
from .standins.volatile import GENERATOR
from .trace.around_trace import around_trace
from .trace.place import Place
from .trace.wrapping import MATH, reached_operators

__all__ = ["FeatureTracer"]

# ``trace`` looks through all that a root module holds, for names of tensors that are known here already.
# A function has nothing to look through; what it calls is up to ``create_args_for_root``.
_ROOT = FunctionType((lambda: None).__code__, {})

_LITERALS = frozenset({type(None), bool, int, float, str})
_CALLS = frozenset({"call_function", "call_method", "call_module"})


class FeatureTracer(RefusingTracer):
    """Records one forward of a module, once, in the mode that its ``training`` flags say.

    Args:
        tree: the model.
        untouched: the model as it was, which it is again after the trace.
        options: what the user wants to be one node, and which arguments are fixed.
        is_careful: whether each call of a module is looked at more closely, which takes longer.

    Attributes:
        recording: what was recorded.
        place: where in the model the trace is.
        real: the real tensors that it meets; while it lasts.
        read_later: what was read of tensors, and may be used later.

    """

    def __init__(
        self, tree: ModuleTree, untouched: Untouched, options: Options, *, is_careful: bool
    ) -> None:
        self._wrapped = tuple(options.autowrap_functions)
        whole = (*reached_operators(tree.paths.values()), *options.autowrap_modules)
        # Not ``math`` itself, whose functions fx would then wrap anew for each trace.
        functions = (*MATH, *self._wrapped)
        super().__init__(tuple(dict.fromkeys(whole)), autowrap_functions=functions)
        self._is_leaf = LeafRule(options.leaf_modules)
        self._thread = threading.get_ident()
        self._tree = tree
        self._concrete = options.concrete_args
        self.place = Place()
        self.read_later: list[weakref.ref[fx.Proxy]] = []
        self.recording = Recording(tree)
        self._asks = Questions()
        self._inside_leaves: set[int] = set()
        self._asked_types = AskedTypes()
        saved = SavedTensors()
        self.real = RealTensors(self, tree, saved)
        self._guard = Guard(untouched, saved)
        self._carry_over = CarryOver(untouched, self.recording, self.refusal, is_careful=is_careful)

    def trace_once(self) -> bool:
        """Trace the model, and leave it and the process as they were.

        Returns:
            Whether random numbers were drawn that a graph cannot draw again.

        Raises:
            UntraceableModelError: if the forward of the model itself cannot be recorded.
            Again: if what it leaves behind must be looked at more closely, see ``is_careful``.

        """
        guard, model = self._guard, self._tree.model
        watched = around_trace(
            self._tree, guard, self.place.regions, self._wrapped, self.real, self.refusal
        )
        with watched as reads:
            try:
                self.recording.graph = self.trace(_ROOT)
                self.real.check_found()
            except Exception as error:
                raise untraceable(model, error) from error
            finally:
                self._asked_types.restore()
            self.recording.read_training = reads.seen or self.recording.read_training
        # fx holds on to the tracer in a cycle; the copies of the model need not wait for its collection.
        del self._guard, self._carry_over, self.real
        return guard.foreign_random_state_moved

    # -- what fx asks for -------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Make one placeholder for each argument, and enter the root like any other module."""
        self.root = self._tree.model
        args, kwargs = root_arguments(self, self._tree.signature, self._concrete)

        def forward() -> None:
            if has_own_call(self.root):
                self.call_module(self.root, self.root, tuple(args), kwargs)
            else:
                self.root(*args, **kwargs)

        return forward, []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a call of ``m`` is one node: the user's choice, or a module of ``torch.nn``."""
        is_auto_leaf = module_qualified_name in self.recording.auto_leaves
        return is_auto_leaf or self._is_leaf(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a leaf, or look into ``m``; if that fails, ``m`` becomes a leaf by itself."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        path = self._tree.path_of(m)
        if path is None:
            if keeps_nothing(m):
                return forward(*args, **kwargs)
            raise fx.proxy.TraceError(
                f"{type(m).__name__} is no submodule of the model: it is made inside forward, or kept "
                "where torch does not look for modules, as in a list"
            )
        if not path and self.place.scopes and has_own_call(m):
            return forward(*args, **kwargs)
        if not path and _compat.is_compiled_in_place(m):
            forward = m._call_impl
        if id(m) in self._inside_leaves:
            raise self.refusal(
                f"{path} is called after a module that is one node, which calls it perhaps: its calls "
                "could not be counted"
            )
        around = self.place.enter(path, type(m), len(self.recording.events))
        try:
            if path and self.is_leaf_module(m, path):
                self._carry_over.check_leaf(m, path)
                self._note_leaf(path, m)
                return self.create_proxy("call_module", path, args, kwargs)
            return self._look_into(m, path, forward, args, kwargs)
        finally:
            self.place.leave(around)

    def _look_into(
        self,
        module: nn.Module,
        path: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.place.scopes and self._is_caught():
            raise self.refusal(CATCHES)
        code = forward_of(module)
        asks = questions_of(code)
        reason = why_not_look_into(module, asks)
        self._carry_over.enter(module, path, is_leaf=reason is not None)
        if reason is None:
            mark = self.recording.mark()
            call = self.recording.begin_call(path)
            self.place.scopes.append(path)
            outer, self._asks = self._asks, asks
            self._asked_types.show_in((*asks.types, *asked_in_held(module, code)))
            if asks.resizes:
                self.real.watch_memory()
            try:
                value = self._run(module, forward, args, kwargs)
                self.raise_swallowed()
                if asks.resizes:
                    self.real.check_memory()
                self._carry_over.leave(module, path, call.start)
                self.recording.end_call(call, freeze(value, self.real.node))
                return value
            except Exception as raised:
                error = self.behind(raised)
                if path == "":
                    if error is raised:
                        raise
                    raise error from raised
                reason = f"{type(error).__name__}: {error} ({location_of(error, module)})"
                self._carry_over.fail(module, path)
                self.real.forget(self.recording.rollback(mark))
                self._guard.model.restore(module)
            finally:
                self._asks = outer
                self.place.scopes.pop()
        elif path == "":
            raise fx.proxy.TraceError(reason)
        self.recording.auto_leaves[path] = reason
        self._note_leaf(path, module)
        return self.create_proxy("call_module", path, args, kwargs)

    def _note_leaf(self, path: str, leaf: nn.Module) -> None:
        """Remember what a module that is one node may call; those of torch call none of their children."""
        is_torchs = is_of_torch(type(leaf))
        if is_torchs and not (leaf._modules or leaf._forward_hooks or leaf._forward_pre_hooks):
            return  # most leaves
        self.real.leaves.add(path, leaf)
        if not is_torchs:
            self._inside_leaves.update(map(id, islice(leaf.modules(), 1, None)))

    def _is_caught(self) -> bool:
        """Say whether the forward that runs would go on if what it just does raised."""
        return is_caught(sys._getframe(2), self._asks.code, _LOOKS_INTO)

    def _run(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        inline = getattr(type(module), "__featuretap_inline__", None)
        if inline is not None:
            self.recording.read_training = True
            return inline(module, self, self._tree.path_of(module), args, kwargs)
        return forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Read parameters through the graph; everything else is the real thing."""
        if isinstance(attr_val, nn.Parameter) and threading.get_ident() == self._thread:
            return self.real.parameter(attr_val)
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """Lower a value to a graph argument. Tensors get a node, and the model stays as it is."""
        kind = type(a)
        if kind is FeatureProxy:
            return a.node
        if isinstance(a, fx.Proxy):
            return node_of(a)
        if kind in _LITERALS or isinstance(a, type):
            return a
        if kind is tuple:
            return tuple(map(self.create_arg, a))
        if isinstance(a, torch.Tensor):
            return self.real.node(a)
        if kind is torch.dtype or kind is torch.device:
            return self.real.read_off(a)
        if kind is torch.Generator:
            raise self.refusal(GENERATOR)
        if isinstance(a, nn.Module):
            raise self.refusal(GIVEN_MODULE)
        return super().create_arg(a)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """Append a node that remembers where it was made."""
        if threading.get_ident() != self._thread:
            raise self.refusal("the forward calculates in another thread")
        called = self._tree.paths[target] if kind == "call_module" else target
        reason = why_not_record(kind, called, args, kwargs)
        if kind in _CALLS and self._is_caught():
            reason = CATCHES
        if reason is not None:
            raise self.refusal(reason)
        if is_overtaken(target, self.read_later):
            raise self.refusal(
                f"{target}() changes what was read of a tensor before and is used later"
            )
        node = self.graph.create_node(kind, target, None, None, name, type_expr)
        # Not given to ``create_node``: it would search them for symbolic sizes, which takes as long as
        # the rest, and there are none.
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        self.check_answers(node, self._tree.paths)
        self.place.note_on(node)
        if kind != "output":
            self.recording.events.append(node)
        self.real.note_effect(node, called if kind == "call_module" else None)
        if self._asks.identity and asks_identity(node, self._tree.paths):
            raise self.refusal("the forward compares with 'is' what may be None or a constant")
        return node

    def proxy(self, node: fx.Node) -> FeatureProxy:
        """Wrap ``node`` in a Proxy that knows in-place operators and assignment to items."""
        return FeatureProxy(node, self)


_LOOKS_INTO = FeatureTracer._look_into.__code__
