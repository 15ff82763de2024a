"""What takes the place of the watching while ``torch.compile`` traces an extractor.

Dynamo follows hooks that are there, but not their registration. So they are registered for real, by a
function that it runs instead of tracing, and stay as long as the extractor lives, because compiled
code is only valid while they are there; outside of it they do nothing.

Frames, weak references and sizes that remember are beyond dynamo too. So an operation is told by its
place, the n-th torch function in its scope, as a forward that was watched before has shown.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from torch import nn
from torch.overrides import TorchFunctionMode

from featuretap._compat import is_compiling
from featuretap.copying import copy_value
from featuretap.modules import LeafRule, ModuleTree
from featuretap.signatures import has_own_call

from ._compat import dynamo_follows_exceptions, kept_from_dynamo, run_by_dynamo
from .program import Program, counts, is_same

__all__ = [
    "BrokenGraphError",
    "Holder",
    "problem_of",
    "run_compiled",
    "run_uncompiled",
]

_NUMBERS = itertools.count()
_EXTRACTORS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

# What dynamo makes operations of, and Python attributes.
_SHOWN = frozenset({"numpy_T", "mT", "matrix_H"})
BROKEN = (
    "torch.compile breaks the graph in the forward of which this extractor takes operations, or runs "
    "others than were watched before (inside of a torch.autograd.Function, for one)"
)
_TOO_OLD = "torch.compile of operations needs torch 2.7 or newer"


class BrokenGraphError(RuntimeError):
    """The forward was left half-way, and is not compiled as a whole."""


class CompiledStop(BaseException):
    """Everything is there."""


class State:
    """The values of one compiled forward; made and filled by code that dynamo traces."""

    def __init__(self, program: Program, *, stop: bool) -> None:
        self.values: dict[str, Any] = {}
        self.left = len(program.wanted) + len(program.inputs)
        for names in program.outputs.values():
            self.left += len(names)
        self.stop = stop
        self.outputs = program.outputs
        self.retained = program.retained
        self.calls: dict[str, int] = {}
        self.scopes: list[str] = [""] if program.calls_itself else []
        self.seen: dict[str, int] = {}
        self.is_copying = False

    def wanted_output(self, path: str, value: Any) -> None:
        """Keep what a module returned, if it is wanted in this mode."""
        if path not in self.outputs:
            return
        number = self.calls.get(path, 0)
        self.calls[path] = number + 1
        if number in self.outputs[path]:
            self.take(self.outputs[path][number], value)

    def take(self, name: str, value: Any) -> None:
        """Keep a value: a copy, unless nothing can write it any more."""
        if name in self.values:
            return
        self.left -= 1
        is_last = self.stop and self.left == 0
        self.is_copying = True  # which is no operation of the scope that runs
        self.values[name] = copy_value(value) if name in self.retained or not is_last else value
        self.is_copying = False
        if is_last:
            raise CompiledStop


class _PlaceMode(TorchFunctionMode):
    def __init__(self, state: State, program: Program) -> None:
        super().__init__()
        self.state = state
        self.program = program
        self.wanted = program.wanted
        self.functions = program.functions

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not is_compiling():
            # Only where dynamo has left the forward half-way does an operation come here by itself.
            _leave(self.program)
        value = func(*args, **(kwargs or {}))
        state, name = self.state, getattr(func, "__name__", "")
        scope = state.scopes[-1] if state.scopes else "?"
        if state.is_copying or scope not in self.functions:
            return value
        if name in _SHOWN or not counts(func, value):
            return value
        number, known = state.seen.get(scope, 0), self.functions[scope]
        state.seen[scope] = number + 1
        if number >= len(known) or not is_same(known[number], name):
            _leave(self.program)
        if (scope, number) in self.wanted:
            state.take(self.wanted[scope, number], value)
        return value


def _leave(program: Program) -> NoReturn:
    """Give up compiling: the next forward is watched."""
    program.problem = BROKEN
    raise BrokenGraphError(f"{BROKEN}. Call it again: from now on the real forward is watched")


def run_compiled(extractor: Any, program: Program, args: Any, kwargs: Any) -> dict[str, Any]:
    """Run the model under dynamo's eyes and return the values by name."""
    holder = extractor._compiled_holder
    can_stop = _install(holder.key)
    state = State(program, stop=program.stop and can_stop)
    holder.state = state
    try:
        for name, (index, argument) in program.inputs.items():
            state.take(name, args[index] if index < len(args) else kwargs[argument])
        if program.wanted:
            with _PlaceMode(state, program):
                value = _call(extractor._model, program, args, kwargs)
        else:
            value = _call(extractor._model, program, args, kwargs)
        if program.calls_itself:
            state.wanted_output("", value)
    except CompiledStop:
        pass
    finally:
        holder.state = None
    if state.left > 0 and extractor._options.missing == "error":
        _leave(program)
    return state.values


def _call(model: Any, program: Program, args: Any, kwargs: Any) -> Any:
    if program.calls_itself:
        # Older dynamo goes to the forward of a module that is called inside of another.
        return type(model).__call__(model, *args, **kwargs)
    return model(*args, **kwargs)


@run_by_dynamo
def _compiles_operations(_key: str) -> bool:
    """Say whether operations may be compiled: dynamo must follow what is raised where it goes astray.

    Older dynamo calls nothing that takes no argument.
    """
    return dynamo_follows_exceptions()


def problem_of(extractor: Any, program: Program) -> str:
    """Say why dynamo must not trace this forward; ``""`` if it may."""
    if program.wanted and not program.problem:
        # Not asked by the function that breaks the graph: dynamo of torch 2.4 would call the answer there.
        return "" if _compiles_operations(extractor._compiled_holder.key) else _TOO_OLD
    return program.problem


def run_uncompiled(extractor: Any, problem: str, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
    """Break the graph and watch the real forward; with ``fullgraph=True`` dynamo says ``problem``."""
    holder = extractor._compiled_holder
    _prepare_break(holder.key, problem)
    features: OrderedDict[str, Any] = holder.watched(extractor, args, kwargs)
    return features


@run_by_dynamo
def _prepare_break(key: str, problem: str) -> bool:
    holder = vars(_EXTRACTORS[key])["_compiled_holder"]
    if holder.watched is None:
        holder.watched = kept_from_dynamo(_watched, problem)
    return True


def _watched(extractor: Any, args: Any, kwargs: Any) -> Any:
    return extractor._watched(args, kwargs)


class Holder:
    """What the hooks of one extractor look at.

    Attributes:
        state: the values of the forward that runs, if one runs.
        handles: the hooks, once they are registered.
        watched: runs the extractor where dynamo does not look, once that was needed.
        key: what the extractor is known by; older dynamo passes only constants to what it runs.

    """

    def __init__(self, extractor: Any) -> None:
        self.state: State | None = None
        self.handles: list[Any] = []
        self.watched: Callable[..., Any] | None = None
        self.key = f"extractor {next(_NUMBERS)}"
        _EXTRACTORS[self.key] = extractor

    def __reduce__(self) -> Any:
        # The hooks of a copy of the model belong to no extractor.
        return _Nobody, ()


class _Nobody:
    state = None


@run_by_dynamo
def _install(key: str) -> bool:
    """Register the hooks of an extractor, for real; say whether the forward can end before its end."""
    extractor = _EXTRACTORS[key]
    attributes = vars(extractor)
    handles = attributes["_compiled_holder"].handles
    if not handles:
        # The hooks look at the holder, so that they do not keep the extractor alive.
        weakref.finalize(extractor, _remove, handles)
        _register(attributes, handles)
    return dynamo_follows_exceptions()


def _register(attributes: dict[str, Any], handles: list[Any]) -> None:
    tree: ModuleTree = attributes["_found"].tree
    is_leaf: LeafRule = attributes["_found"].is_leaf
    programs: dict[str, Program] = attributes["_programs"]
    outputs = sorted({path for program in programs.values() for path in program.outputs})
    scopes = any(program.wanted for program in programs.values())
    holder = attributes["_compiled_holder"]
    hooked = dict(tree.paths)
    if has_own_call(tree.model):
        del hooked[""]
    if scopes:
        for path, module in hooked.items():
            scope = "?" if path and is_leaf(module, path) else path
            handles.append(module.register_forward_pre_hook(partial(_open, holder, scope)))
    for path in filter(hooked.__contains__, outputs):
        handles.append(hooked[path].register_forward_hook(partial(_take, holder, path)))
    if scopes:
        for module in hooked.values():
            handles.append(module.register_forward_hook(partial(_close, holder)))


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


# Partials of functions that have a name, so that a model which they are on can be pickled.


def _open(holder: Any, scope: str, _module: nn.Module, _args: Any) -> None:
    state = holder.state
    if state is not None:
        inside_leaf = len(state.scopes) > 0 and state.scopes[-1] == "?"
        state.scopes.append("?" if inside_leaf else scope)


def _close(holder: Any, _module: nn.Module, _args: Any, _value: Any) -> None:
    state = holder.state
    if state is not None:
        state.scopes.pop()


def _take(holder: Any, path: str, _module: nn.Module, _args: Any, value: Any) -> None:
    state = holder.state
    if state is not None:
        state.wanted_output(path, value)
