"""What is where in a model: paths of modules, names of parameters and buffers, the signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from . import _compat
from .errors import UntraceableModelError
from .inspecting.looking import is_a
from .inspecting.whose import is_users
from .naming import join
from .signatures import signature_of

__all__ = [
    "LeafRule",
    "ModuleTree",
    "are_current",
    "converts_itself",
    "keeps_nothing",
    "stored_tensor",
    "switch",
]

_IS_LEAF_FOR_FX = fx.Tracer().is_leaf_module


class LeafRule:
    """Which modules are not looked into: of ``torch.nn``, as for fx, of TorchScript, and the user's choice.

    Args:
        leaf_modules: module types or instances.

    """

    def __init__(self, leaf_modules: Iterable[type[nn.Module] | nn.Module] = ()) -> None:
        leaves = list(leaf_modules)
        self._types = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        self._ids = {id(leaf) for leaf in leaves if not isinstance(leaf, type)}

    def __call__(self, module: nn.Module, path: str) -> bool:
        """Say whether a call of ``module`` is one node."""
        chosen = id(module) in self._ids or isinstance(module, self._types)
        return chosen or _IS_LEAF_FOR_FX(module, path) or isinstance(module, torch.jit.ScriptModule)


class ModuleTree:
    """The module hierarchy of one model, looked up in constant time.

    A module registered under several paths belongs to the first (:attr:`paths`); the others are
    in :attr:`aliases`, which maps them to it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.paths: dict[str, nn.Module] = {}
        self.aliases: dict[str, str] = {}
        self._path_by_id: dict[int, str] = {}
        for path, module in _walk(model):
            first = self._path_by_id.setdefault(id(module), path)
            if first == path:
                self.paths[path] = module
            else:
                self.aliases[path] = first
        self.reserved = frozenset(self.paths) | frozenset(self.aliases)

    def path_of(self, module: nn.Module) -> str | None:
        """Return the path of ``module``, ``None`` if it is no submodule of the model."""
        return self._path_by_id.get(id(module))

    def canonical(self, name: str) -> str:
        """Translate a second path of a shared module to its first, also in the name of an operation."""
        if name in self.aliases:
            return self.aliases[name]
        scope, _, operation = name.rpartition(".")
        return join(self.aliases[scope], operation) if scope in self.aliases else name

    def kind_at(self, path: str) -> str:
        """Return the name of the class of the module at ``path``; ``""`` if there is none."""
        module = self.paths.get(self.aliases.get(path, path))
        return "" if module is None else type(module).__name__

    @cached_property
    def compiled(self) -> dict[str, nn.Module]:
        """The modules that ``torch.compile`` was given, by the paths of what it returned."""
        found = ((path, _compat.compiled_module(m)) for path, m in self.paths.items())
        return {path: inner for path, inner in found if inner is not None}

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by their ``state_dict`` key, the first where one is shared."""
        return dict(self._stored("_parameters"))

    def _stored(self, registry: str) -> Iterator[tuple[str, Any]]:
        """Yield what is in one registry of each module, as ``named_parameters`` does, in one walk."""
        seen: set[int] = set()
        for path, module in self.paths.items():
            for name, tensor in getattr(module, registry).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield join(path, name), tensor

    @cached_property
    def parameter_names(self) -> dict[int, str]:
        """Names of parameters by identity."""
        return {id(parameter): name for name, parameter in self.parameters.items()}

    @cached_property
    def read_names(self) -> dict[str, str]:
        """Parameters by what torchvision calls a read of them in the scope that reads."""
        return {name.replace(".", "_").lower(): name for name in self.parameters}

    @cached_property
    def tensor_names(self) -> dict[int, str]:
        """Names of everything that holds a tensor, by identity: parameters, buffers, attributes."""
        names = dict(self.parameter_names)
        for name, tensor in self._others():
            names.setdefault(id(tensor), name)
        return names

    @cached_property
    def other_tensors(self) -> dict[int, Callable[[], Any]]:
        """What reads each buffer, and tensor that is a plain attribute, by identity.

        That counts while it is there: old-style ``weight_norm`` sets another tensor in each call, and
        what a later one computes may get the place of the earlier. There are no weak references to
        them, for tensors that have any cannot be swapped.
        """
        found: dict[int, Callable[[], Any]] = {}
        for module in self.paths.values():
            for registry in (module._buffers, vars(module)):
                for name, value in list(registry.items()):
                    if is_a(value, torch.Tensor) and id(value) not in self.parameter_names:
                        found[id(value)] = partial(_read, registry, name)
        return found

    def is_registered(self, name: str | None) -> bool:
        """Say whether ``name`` is that of a parameter or buffer, and of no tensor in an attribute."""
        if name is None or name in self.parameters:
            return name is not None
        owner, _, attribute = name.rpartition(".")
        return owner in self.paths and attribute in self.paths[owner]._buffers

    def _others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield buffers, and tensors that are attributes."""
        yield from self._stored("_buffers")
        for path, module in self.paths.items():
            for attribute, value in list(vars(module).items()):
                if is_a(value, torch.Tensor):
                    yield join(path, attribute), value

    @cached_property
    def storages(self) -> dict[int, list[torch.Tensor]]:
        """The tensors of the model by the storage they are in, of which they may be views."""
        return self.find_storages()

    def find_storages(self) -> dict[int, list[torch.Tensor]]:
        """Return the same as it is now."""
        tensors: dict[int, list[torch.Tensor]] = {}
        stored = [value for module in self.paths.values() for value in list(vars(module).values())]
        for tensor in (*self.model.parameters(), *self.model.buffers(), *stored):
            if is_a(tensor, torch.Tensor):
                tensors.setdefault(_compat.storage_id(tensor), []).append(tensor)
        return tensors

    @cached_property
    def with_parameters(self) -> frozenset[str]:
        """Paths of the modules that hold a parameter, themselves or further inside."""
        found = {""} if self.parameters else set()
        for name in self.parameters:
            path = name.rpartition(".")[0]
            while path not in found:
                found.add(path)
                path = path.rpartition(".")[0]
        return frozenset(found)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the model's ``forward``, without ``self``."""
        return signature_of(self.model)

    @cached_property
    def has_own_train_method(self) -> bool:
        """Whether some module overrides ``train``, or what sets its flag: its code switches modes."""
        return any(map(_switches_itself, set(map(type, self.paths.values()))))


def _switches_itself(kind: type[nn.Module]) -> bool:
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return kind.train is not nn.Module.train or any(
        "training" in vars(base) or ("__setattr__" in vars(base) and is_users(base)) for base in own
    )


def _read(registry: Mapping[str, Any], name: str) -> Any:
    try:
        return registry[name]
    except KeyError:
        return None


def switch(model: nn.Module, training: bool) -> None:
    """Put ``model`` into a mode, also if part of it has that one alone, as what ``torch.export`` made.

    Raises:
        UntraceableModelError: if part of it has the other mode alone, or its own code refuses it.

    """
    mode = "train" if training else "eval"
    try:
        model.train(training)
    except NotImplementedError as error:
        for path, module in model.named_modules():
            if module.training is not training:
                raise UntraceableModelError(
                    f"{path or type(model).__name__!r} cannot be switched to {mode} mode: {error}",
                    path,
                ) from error
    except Exception as error:
        raise UntraceableModelError(
            f"{type(model).__name__} cannot be switched to {mode} mode: {type(error).__name__}: {error}",
            "",
        ) from error


def keeps_nothing(module: nn.Module) -> bool:
    """Say so of a layer of torch's that only computes, or only calls others: part of a ``Sequential``."""
    is_torchs = type(module).__module__.startswith("torch.nn.modules.")
    return is_torchs and not (module._parameters or module._buffers)


def converts_itself(module: nn.Module) -> bool:
    """Say whether ``to`` or ``half`` is more than torch makes it: its class has an ``_apply``."""
    return type(module)._apply is not nn.Module._apply


def stored_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """Return the tensor itself that ``module`` keeps as ``name``, also while fx traces."""
    for registry in (module._parameters, module._buffers, vars(module)):
        tensor = registry.get(name)
        if isinstance(tensor, torch.Tensor):
            return tensor
    raise AttributeError(f"{type(module).__name__} keeps no tensor {name!r}")


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under every path it has, in the order of ``named_modules``."""
    yield "", model
    ancestors = {id(model)}
    pending = [(model, "", iter(_children(model).items()))]
    while pending:
        parent, prefix, children = pending[-1]
        for name, child in children:
            if child is None or id(child) in ancestors:
                continue
            path = f"{prefix}{name}"
            yield path, child
            inner = _children(child)
            if inner:
                ancestors.add(id(child))
                pending.append((child, f"{path}.", iter(inner.items())))
                break
        else:
            ancestors.discard(id(parent))
            pending.pop()


def _children(module: nn.Module) -> dict[str, nn.Module | None]:
    if isinstance(module, torch.jit.ScriptModule):
        return {}  # what is inside of it are not Python's modules
    # An extractor may register a part only of the modules that it calls.
    children: dict[str, nn.Module | None] = vars(module).get("_called_modules", module._modules)
    return children


class Link(NamedTuple):
    """Where a module is registered: in which registry, by which name; it may not be there."""

    registry: Mapping[str, Any]
    name: str
    module: nn.Module | None


def links_to(model: nn.Module, paths: Iterable[str]) -> Iterator[Link]:
    """Yield where each module on the way to ``paths`` is registered, and the first that is missing."""
    known: set[str] = set()
    for path in paths:
        module, names = model, path.split(".") if path else []
        for depth, name in enumerate(names):
            registry, child = module._modules, module._modules.get(name)
            start = ".".join(names[: depth + 1])
            if start not in known:
                known.add(start)
                yield Link(registry, name, child)
            if child is None:
                break
            module = child


def are_current(links: Iterable[Link]) -> bool:
    """Say whether the modules are still where they were."""
    for registry, name, module in links:  # noqa: SIM110 (asked in each forward)
        if registry.get(name) is not module:
            return False
    return True
