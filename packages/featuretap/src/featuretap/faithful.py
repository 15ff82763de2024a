"""What tracing must not lose, and what it must leave behind untouched.

Tracing runs the model's own Python with stand-ins for tensors. Three things need care:

1. the *model*: that Python may set attributes, move counters, write buffers, draw random
   numbers. :class:`Untouched` puts all of it back.
2. *real tensors*: buffers and constants stay real while tracing, so that Python may look at
   their sizes; but what is computed from them must be computed again on every call.
   :class:`RealTensorMode` hands each such operation to the tracer.
3. *modes*: a forward that never looks at ``training`` is the same in train and eval.
   :class:`TrainingReads` says whether it looked.
"""

from __future__ import annotations

import copy
import dis
import operator
import random
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from . import _compat

__all__ = ["RealTensorMode", "TrainingReads", "Untouched", "contains", "foreign_random_state"]


class Untouched:
    """Put a model back as it was: flags, attributes, registries, hooks, random state.

    Containers and plain objects held by a module are restored in place, so that whoever else holds
    them sees the restored content. The content of tensors is guarded by :class:`RealTensorMode`,
    which sees every write.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {id(module): _ModuleContent(module) for module in model.modules()}

    def restore(self, subtree: nn.Module | None = None) -> None:
        """Undo what happened since this object was made, to all modules or to one subtree."""
        if subtree is None:
            contents = list(self._modules.values())
        else:
            known = (self._modules.get(id(module)) for module in subtree.modules())
            contents = [content for content in known if content is not None]
        for content in contents:
            content.restore()

    def with_current_flags(self) -> Untouched:
        """Return a copy that holds the ``training`` flags of now, and all else as it was."""
        new = copy.copy(self)
        new._modules = {key: content.with_flag() for key, content in self._modules.items()}
        return new

    def restore_flags(self) -> None:
        """Put back the ``training`` flags alone."""
        for content in self._modules.values():
            current, values = content.attributes[0]
            if "training" in values:
                current["training"] = values["training"]

    def reassigned_tensors(self, module: nn.Module) -> str:
        """Name a buffer, or a tensor the module reads in its forward, that was set to another one."""
        content = self._modules.get(id(module))
        return content.reassigned(module) if content is not None else ""


class _ModuleContent:
    __slots__ = ("attributes", "containers", "empty")

    def __init__(self, module: nn.Module) -> None:
        self.attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        # Most registries of a module are empty, and those need no copy and no comparison.
        self.empty: list[Any] = []
        self.containers: list[tuple[Any, Any]] = []
        self._add_object(module, depth=0)

    def with_flag(self) -> _ModuleContent:
        new = copy.copy(self)
        current, values = self.attributes[0]
        if "training" in values:
            values = {**values, "training": current["training"]}
        new.attributes = [(current, values), *self.attributes[1:]]
        return new

    def _add_object(self, owner: object, depth: int) -> None:
        values = dict(vars(owner))
        self.attributes.append((vars(owner), values))
        for name, value in values.items():
            kind = type(value)
            if (kind is dict or kind is OrderedDict) and not value:
                self.empty.append(value)
            elif name in _REGISTRIES:
                self.containers.append((value, value.copy()))
            elif kind not in _LEAVES:
                self._add_value(value, depth)

    def _add_value(self, value: Any, depth: int) -> None:
        if type(value) in _LEAVES:
            return
        if isinstance(value, (dict, list, set)):
            self.containers.append((value, value.copy()))
            if depth < _DEPTH:
                for item in value.values() if isinstance(value, dict) else value:
                    self._add_value(item, depth + 1)
        elif depth < _DEPTH and hasattr(value, "__dict__") and not isinstance(value, _NOT_OPENED):
            self._add_object(value, depth + 1)

    def reassigned(self, module: nn.Module) -> str:
        before = self.attributes[0][1]
        buffers = module._buffers
        for container, content in self.containers:
            if container is buffers and not _same_items(buffers, content):
                changed = [name for name in buffers if buffers[name] is not content.get(name)]
                return f"the buffer {', '.join(changed)}"
        for name, value in vars(module).items():
            if before.get(name, value) is not value and isinstance(value, (torch.Tensor, fx.Proxy)):
                code = getattr(type(module).forward, "__code__", None)
                if code is None or _reads(code, name):
                    return f".{name}"
        return ""

    def restore(self) -> None:
        for current, values in self.attributes:
            if not _same_items(current, values):
                current.clear()
                current.update(values)
        for container in self.empty:
            if container:
                container.clear()
        for container, content in self.containers:
            _restore_container(container, content)


# How deep objects and containers inside a module are put back: a helper object with a cache in a dict.
_DEPTH = 3
_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})
_LEAVES = frozenset({type(None), bool, int, float, str, bytes, torch.Tensor, nn.Parameter, tuple})
_NOT_OPENED = (
    nn.Module,
    torch.Tensor,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)


def _reads(code: types.CodeType, name: str) -> bool:
    """Say whether a function reads an attribute called ``name``, besides setting it."""
    return any(
        instruction.argval == name and not instruction.opname.startswith(("STORE", "DELETE"))
        for instruction in dis.get_instructions(code)
        if "ATTR" in instruction.opname or "METHOD" in instruction.opname
    )


def _same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Say whether two dicts hold the very same objects under the same keys, in the same order."""
    if len(a) != len(b):
        return False
    return all(map(operator.is_, a.values(), b.values())) and list(a) == list(b)


def _restore_container(container: Any, content: Any) -> None:
    if isinstance(container, dict):
        if not _same_items(container, content):
            container.clear()
            container.update(content)
    elif isinstance(container, list):
        if len(container) != len(content) or not all(map(operator.is_, container, content)):
            container[:] = content
    elif container != content:
        container.clear()
        container.update(content)


class RandomState:
    """The state of torch's random generators on the CPU and on every CUDA device in use."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if in_use else []

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def foreign_random_state() -> tuple[object, Callable[[], None]]:
    """Return the state of Python's and NumPy's global generators, and a function that restores it.

    Draws from these leave no trace in a graph, so a trace that moved them cannot be faithful.
    """
    python = random.getstate()
    numpy_random = sys.modules.get("numpy.random")
    numpy = numpy_random.get_state() if numpy_random is not None else None

    def restore() -> None:
        random.setstate(python)
        if numpy_random is not None:
            numpy_random.set_state(numpy)

    fingerprint = (hash(python), None if numpy is None else (numpy[1].tobytes(), *numpy[2:]))
    return fingerprint, restore


class TrainingReads:
    """While entered, note whether this thread reads the ``training`` flag of any module.

    A data descriptor on ``nn.Module`` comes before the instance's own attribute, so reads are
    seen without touching any module. Other threads pass through it unseen.
    """

    def __init__(self) -> None:
        self.seen = False
        self._thread = threading.get_ident()

    def _get(self, module: nn.Module) -> bool:
        if threading.get_ident() == self._thread:
            self.seen = True
        try:
            return bool(vars(module)["training"])
        except KeyError:
            raise AttributeError("training") from None

    @staticmethod
    def _set(module: nn.Module, value: bool) -> None:
        vars(module)["training"] = value

    def __enter__(self) -> TrainingReads:
        nn.Module.training = property(self._get, self._set)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del nn.Module.training


def contains(kinds: type | tuple[type, ...], *values: object) -> bool:
    """Say whether any of the nested ``values`` holds an instance of ``kinds``."""
    for value in values:
        if isinstance(value, kinds):
            return True
        if isinstance(value, (tuple, list)):
            if contains(kinds, *value):
                return True
        elif isinstance(value, dict):
            if contains(kinds, *value.values()):
                return True
        elif isinstance(value, slice) and contains(kinds, value.start, value.stop, value.step):
            return True
    return False


class RealTensorRecorder(Protocol):
    """What :class:`RealTensorMode` needs of a tracer."""

    def record_function(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call that has a Proxy among its arguments."""

    def run_real(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call on real tensors, and record it."""


class RealTensorMode(TorchFunctionMode):
    """Show the tracer every torch function, also those that no Proxy takes part in."""

    def __init__(self, recorder: RealTensorRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Send calls with a Proxy to the graph, and run the others under the tracer's eye."""
        kwargs = kwargs or {}
        if any(issubclass(kind, fx.Proxy) for kind in types) or contains(fx.Proxy, args, kwargs):
            return self._recorder.record_function(func, args, kwargs)
        return self._recorder.run_real(func, args, kwargs)


class SavedTensors:
    """The content of tensors that existed before the trace and were written during it.

    Attributes:
        drew_random_numbers: whether the trace drew from torch's generators.

    """

    def __init__(self) -> None:
        self._saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.drew_random_numbers = False

    def save(self, tensor: torch.Tensor) -> None:
        """Keep a copy of ``tensor`` as it is now, unless one is kept already."""
        if id(tensor) not in self._saved:
            self._saved[id(tensor)] = (tensor, tensor.detach().clone())

    def restore(self) -> None:
        """Write the saved content back; for autograd nothing has happened."""
        with torch.no_grad():
            for tensor, content in self._saved.values():
                with _compat.preserve_version(tensor):
                    tensor.copy_(content)


class Guard:
    """Everything that one trace may disturb, restored on exit whatever happened."""

    def __init__(self, untouched: Untouched, tensors: SavedTensors) -> None:
        self.model = untouched
        self._tensors = tensors
        self._random = RandomState()
        self._foreign, self._restore_foreign = foreign_random_state()

    @property
    def foreign_random_state_moved(self) -> bool:
        """Whether Python's or NumPy's generator was used since the guard was made."""
        return foreign_random_state()[0] != self._foreign

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.model.restore()
        self._tensors.restore()
        # Other threads share the generators: rewind them only if this trace may have moved them.
        if self._tensors.drew_random_numbers:
            self._random.restore()
        if self.foreign_random_state_moved:
            self._restore_foreign()
