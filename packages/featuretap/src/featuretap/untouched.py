"""A model as it was: flags, attributes, registries, hooks, containers and helper objects."""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .held import items_of, rewinder
from .state import is_of_this_call, is_state, only_fills, was_filled

__all__ = ["HookKey", "Untouched", "is_own_hook"]


class HookKey:
    """What hooks of featuretap are registered under while a forward is watched.

    Other threads come and go with theirs, so they are no part of a model as it was.
    """

    __slots__ = ()


def is_own_hook(hook: object) -> bool:
    """Say whether a forward hook, or what stands for a ``forward``, was put there by featuretap."""
    module = getattr(hook, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in (
        "featuretap",
        "featuretap_hooks",
    )


class Untouched:
    """Put a model back as it was: flags, attributes, registries, hooks, random state.

    Containers and plain objects held by a module are restored in place, so that whoever else holds
    them sees the restored content. The content of tensors is guarded by :class:`RealTensorMode`,
    which sees every write.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[int, _ModuleContent] = {
            id(module): _content_of(module) for module in model.modules()
        }

    def restore(self, subtree: nn.Module | None = None) -> None:
        """Undo what happened since this object was made, to all modules or to one subtree."""
        if subtree is None:
            contents = list(self._modules.values())
        else:
            known = (self._modules.get(id(module)) for module in subtree.modules())
            contents = [content for content in known if content is not None]
        for content in contents:
            content.restore()

    @contextmanager
    def in_mode(self, model: nn.Module, training: bool) -> Iterator[None]:
        """Switch ``model`` to a mode, whose flags are the ones to restore until it is left."""
        contents = self._modules.values()
        earlier = [content.flag for content in contents]
        try:
            model.train(training)
            for content in contents:
                content.keep_flag()
            yield
        finally:
            for content, flag in zip(contents, earlier, strict=True):
                content.put_flag(flag)

    def changed_attribute(self, module: nn.Module) -> str:
        """Name an attribute of ``module`` or of a module inside it that is not what it was."""
        for part in module.modules() if module._modules else (module,):
            content = self._modules.get(id(part))
            changed_registry = content.changed_registry(part) if content is not None else ""
            if changed_registry:
                return changed_registry
            if content is not None and not _same_items(*content.attributes[0]):
                before = content.attributes[0][1]
                changed = [
                    name
                    for name, value in _copied(vars(part)).items()
                    if before.get(name) is not value
                ]
                return changed[0] if changed else ""
        return ""

    def moved_state(self, module: nn.Module) -> str:
        """Name what the forward of ``module`` changed that its next call would read.

        A buffer or tensor that was set to another one, a number that is counted, a container that
        was filled, the ``training`` flag of the module or of one it calls.
        """
        content = self._modules.get(id(module))
        for name, part in (("", module), *module._modules.items()):
            kept = self._modules.get(id(part))
            # Not through the attribute: that read would count as the forward's.
            if kept is not None and kept.flag != vars(part).get("training", kept.flag):
                return f"the training flag of {name or 'itself'}"
        return content.moved_state(module) if content is not None else ""


class _ModuleContent:
    __slots__ = ("attributes", "containers", "empty", "hooks", "rewinders")

    def __init__(self, module: nn.Module) -> None:
        self.attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        # Most registries of a module are empty, and those need no copy and no comparison.
        self.empty: list[Any] = []
        self.containers: list[tuple[Any, Any]] = []
        self.hooks: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.rewinders: list[Callable[[], object]] = []
        self._add_object(module, depth=0)

    @property
    def flag(self) -> Any:
        return self.attributes[0][1].get("training")

    def keep_flag(self) -> None:
        current, values = self.attributes[0]
        if "training" in values:
            values["training"] = current["training"]

    def put_flag(self, flag: Any) -> None:
        for attributes in self.attributes[0]:
            if "training" in attributes:
                attributes["training"] = flag

    def _add_object(self, owner: object, depth: int) -> None:
        values = _copied(vars(owner))
        if depth == 0:
            _without_own_wrappers(values)
        self.attributes.append((vars(owner), values))
        for name, value in values.items():
            kind = type(value)
            if depth == 0 and name in _HOOKS:
                if value:
                    self.hooks.append((value, _without_own(value)))
                else:
                    self.hooks.append((value, _NO_HOOKS))
            elif (kind is dict or kind is OrderedDict) and not value:
                self.empty.append(value)
            elif depth == 0 and name in _REGISTRIES:
                self.containers.append((value, _copied(value)))
            elif kind not in _LEAVES:
                self._add_value(value, depth)

    def _add_value(self, value: Any, depth: int) -> None:
        if type(value) in _LEAVES:
            return
        if isinstance(value, (dict, list, set, deque)):
            self.containers.append((value, _copied(value)))
            if depth < _DEPTH:
                for item in items_of(value):
                    self._add_value(item, depth + 1)
        elif isinstance(value, tuple):
            for item in value:
                self._add_value(item, depth)
        elif (rewind := rewinder(value)) is not None:
            self.rewinders.append(rewind)
        elif depth < _DEPTH and hasattr(value, "__dict__") and not isinstance(value, _NOT_OPENED):
            self._add_object(value, depth + 1)

    def changed_registry(self, module: nn.Module) -> str:
        """Name where hooks, parameters or buffers of ``module`` are others than before."""
        for registry, kept in self.hooks:
            if (registry or kept) and not _same_items(_without_own(registry), kept):
                return next(name for name, value in vars(module).items() if value is registry)
        for registry, kept in self.containers:
            # ``torch.func.functional_call`` exchanges what is in these.
            for name in ("_parameters", "_buffers"):
                if registry is vars(module).get(name) and not _same_items(registry, kept):
                    return name
        return ""

    def moved_state(self, module: nn.Module) -> str:
        before = self.attributes[0][1]
        code = getattr(type(module).forward, "__code__", None)
        for container, content in self.containers:
            if container is module._buffers and not _same_items(container, content):
                changed = [name for name in container if container[name] is not content.get(name)]
                return f"the buffer {', '.join(changed)}"
        for container, content in (*self.containers, *((empty, {}) for empty in self.empty)):
            if was_filled(container, content):
                names = [name for name, value in before.items() if value is container]
                if not names or not only_fills(code, names[0]):
                    return "what it puts into a container"
        for current, earlier in self.attributes[1:]:
            for name, value in _copied(current).items():
                if earlier.get(name) is not value and is_of_this_call(value):
                    return f".{name} of an object that it keeps"
        for name, value in _copied(vars(module)).items():
            if before.get(name, value) is not value and is_state(code, name, before[name], value):
                return f".{name}"
        return ""

    def restore(self) -> None:
        for current, values in self.attributes:
            _restore_attributes(current, values)
        for container in self.empty:
            if container:
                container.clear()
        for container, content in self.containers:
            _restore_container(container, content)
        for registry, kept in self.hooks:
            if registry:
                _restore_hooks(registry, kept)
            elif kept:
                registry.update(kept)
        for rewind in self.rewinders:
            rewind()


class _ScriptContent(_ModuleContent):
    """The same of a module of TorchScript, whose attributes are not Python's."""

    __slots__ = ("buffers", "module", "training")

    def __init__(self, module: nn.Module) -> None:
        self.attributes, self.empty, self.containers = [({}, {})], [], []
        self.rewinders = []
        registries = (vars(module).get(name) for name in _HOOKS)
        self.hooks = [(found, _without_own(found)) for found in registries if found is not None]
        self.module = module
        self.buffers = list(module.named_buffers(recurse=False))
        self.keep_flag()

    @property
    def flag(self) -> Any:
        return self.training

    def keep_flag(self) -> None:
        self.training = self.module.training

    def put_flag(self, flag: Any) -> None:
        self.training = flag
        self._restore_flag()

    def restore(self) -> None:
        super().restore()
        self._restore_flag()
        for name, buffer in self.buffers:
            if getattr(self.module, name) is not buffer:
                setattr(self.module, name, buffer)

    def moved_state(self, module: nn.Module) -> str:
        return ""

    def _restore_flag(self) -> None:
        if self.module.training != self.training:
            self.module.training = self.training


def _content_of(module: nn.Module) -> _ModuleContent:
    is_script = isinstance(module, torch.jit.ScriptModule)
    return _ScriptContent(module) if is_script else _ModuleContent(module)


# How deep objects and containers inside a module are put back: a helper object with a cache in a dict.
_DEPTH = 3
_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})
# What a forward hook is registered in.
_HOOKS = frozenset(
    name for name in vars(nn.Module()) if name.startswith("_forward") and "hooks" in name
)
# Where a call is wrapped that must see no hooks.
_WRAPPED = ("forward", "_compiled_call_impl")
_NO_HOOKS: dict[Any, Any] = {}
_MISSING = object()
_LEAVES = frozenset({type(None), bool, int, float, str, bytes, torch.Tensor, nn.Parameter})
_NOT_OPENED = (
    nn.Module,
    torch.Tensor,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)


def _same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Say whether two dicts hold the very same objects under the same keys, in the same order."""
    if len(a) != len(b):
        return False
    return all(map(operator.is_, a.values(), b.values())) and list(a) == list(b)


def _copied(container: Any) -> Any:
    """Copy a container that another thread may be changing."""
    while True:
        try:
            return container.copy()
        except RuntimeError:
            continue


def _without_own(registry: dict[Any, Any]) -> dict[Any, Any]:
    """Return the hooks of a registry that are not of featuretap."""
    return {
        key: hook
        for key, hook in _copied(registry).items()
        if type(key) is not HookKey and not is_own_hook(hook)
    }


def _restore_hooks(registry: dict[Any, Any], kept: dict[Any, Any]) -> None:
    current = _without_own(registry)
    if _same_items(current, kept):
        return
    for key in current:
        registry.pop(key, None)
    registry.update(kept)


def _without_own_wrappers(values: dict[str, Any]) -> None:
    """Put what a wrapper of featuretap stands for in its place."""
    for name in _WRAPPED:
        if _is_own_wrapper(name, values.get(name)):
            replaced = values.pop(name).replaced
            if replaced is not None:
                values[name] = replaced


def _is_own_wrapper(name: str, value: Any) -> bool:
    return name in _WRAPPED and is_own_hook(value) and hasattr(value, "replaced")


def _restore_attributes(current: dict[str, Any], values: dict[str, Any]) -> None:
    """Put attributes back one by one, for another thread may be using the others."""
    if _same_items(current, values):
        return
    for name, now in _copied(current).items():
        if name not in values and not _is_own_wrapper(name, now):
            current.pop(name, None)
    for name, value in values.items():
        now = current.get(name, _MISSING)
        if now is not value and not _is_own_wrapper(name, now):
            current[name] = value


def _restore_container(container: Any, content: Any) -> None:
    if isinstance(container, dict):
        if not _same_items(container, content):
            container.clear()
            container.update(content)
    elif isinstance(container, (list, deque)):
        if len(container) != len(content) or not all(map(operator.is_, container, content)):
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.extend(content)
    elif container != content:
        container.clear()
        container.update(content)
