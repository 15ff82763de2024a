"""One module as it was: attributes, registries, hooks, and what its containers and objects hold."""

from __future__ import annotations

import operator
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..inspecting.containers import copied, is_same, restore_container, same_items
from ..inspecting.looking import is_a
from ..inspecting.reading import Forward, forward_of
from .held import DEPTH
from .held_content import LEAVES, HeldContent, changed_keys
from .put_back import restore_attributes, restore_hooks, without_own, without_own_wrappers
from .state import is_moved_by, may_read, moved_attribute, moved_content, moved_in_object

__all__ = ["HOOKS", "OTHER_REGISTRIES", "REGISTRIES", "ModuleContent", "content_of"]


class ModuleContent:
    """What a module held when this object was made, to be compared and put back.

    Containers and plain objects are put back in place, so that whoever else holds them sees the
    restored content.

    Attributes:
        held: what its containers and objects hold, and modules that are no children, as the model of an
            extractor is.

    """

    __slots__ = ("current", "empties", "held", "hooks", "registries", "values")

    def __init__(self, module: nn.Module, seen: dict[int, int] | None = None) -> None:
        # Made for each module of each trace: what most modules have not is not made for them.
        self.current: dict[str, Any] = vars(module)
        self.values: dict[str, Any] = copied(self.current)
        without_own_wrappers(self.values)
        values, get = self.values, self.values.get
        self.held = _NOTHING
        self.hooks: Sequence[tuple[dict[Any, Any], dict[Any, Any]]] = ()
        registries = tuple(map(get, REGISTRIES))
        self.registries = [(found, copied(found)) for found in registries if found]
        # Most are empty, and need no copy and no comparison one by one.
        self.empties: Sequence[Any] = tuple(map(get, _MOSTLY_EMPTY))
        if any(self.empties):
            self._keep_filled()
        if len(self.registries) < len(REGISTRIES):
            self.empties = (*self.empties, *(found for found in registries if not found))
        seen = {} if seen is None else seen
        for name in values.keys() - _STANDARD:
            value = values[name]
            kind = type(value)
            if kind in LEAVES or (kind is tuple and LEAVES.issuperset(map(type, value))):
                continue
            if self.held is _NOTHING:
                self.held = HeldContent()
            if is_a(value, Iterator):
                is_read = may_read(forward_of(module), name)
                self.held.add_iterator(name, self.current, values, is_read)
            else:
                self.held.add(value, DEPTH, seen)

    def _keep_filled(self) -> None:
        """Keep what is in registries that most modules have nothing in."""
        hooks = {id(self.values.get(name)) for name in HOOKS}
        filled = [found for found in self.empties if found]
        self.hooks = [(found, without_own(found)) for found in filled if id(found) in hooks]
        others = [(found, copied(found)) for found in filled if id(found) not in hooks]
        if others:
            self.held = HeldContent()
            self.held.containers += others
        self.empties = [found for found in self.empties if not found]

    def _empties_of(self, names: Iterable[str]) -> list[Any]:
        """Return those of the registries of these names that were empty."""
        found = {id(self.values.get(name)) for name in names}
        return [empty for empty in self.empties if empty is not None and id(empty) in found]

    @classmethod
    def of_before(
        cls, module: nn.Module, values: dict[str, Any], registries: dict[str, tuple[Any, Any]]
    ) -> ModuleContent:
        """Return the content of another moment.

        Args:
            module: whose it was.
            values: its attributes.
            registries: attribute -> what was kept of it, for those that may be changed.

        """
        content = cls.__new__(cls)
        content.current, content.values = vars(module), values
        without_own_wrappers(values)
        content.held, content.empties = HeldContent(), ()
        content.registries = [both for name, both in registries.items() if name in REGISTRIES]
        content.hooks = [both for name, both in registries.items() if name in HOOKS]
        others = registries.keys() - {*REGISTRIES, *HOOKS}
        content.held.containers += [registries[name] for name in others]
        return content

    # -- the training flag ----------------------------------------------------------------------

    @property
    def flag(self) -> Any:
        """The ``training`` flag that is to be put back."""
        return self.values.get("training")

    @property
    def flag_moved(self) -> bool:
        """Whether the module has another ``training`` flag now."""
        # Not through the attribute: that read would count as the forward's.
        return self.current.get("training") is not self.values.get("training")

    def keep_flag(self) -> None:
        """Let the flag of now be the one to put back."""
        if "training" in self.values:
            self.values["training"] = self.current["training"]

    def put_flag(self, flag: Any) -> None:
        """Set the flag of the module, and the one to put back."""
        for attributes in (self.current, self.values):
            if "training" in attributes:
                attributes["training"] = flag

    # -- what is not as it was ------------------------------------------------------------------

    def changed_attribute(self, module: nn.Module) -> str:
        """Name an attribute, a registry or hooks that are not what they were."""
        if self._is_plainly_as_before():
            return ""
        for registry, kept in self._all_hooks():
            if not same_items(without_own(registry), kept):
                return _name_of(registry, module)
        for registry, kept in self._all_registries():
            # ``torch.func.functional_call`` exchanges what is in these.
            if not same_items(registry, kept):
                return _name_of(registry, module)
        changed = self.changed_names()
        if "forward" in changed:
            return "forward"
        return next((n for n in changed if may_read(forward_of(module), n)), "")

    def changed_names(self) -> list[str]:
        """Return the names of attributes that were set, or deleted."""
        now, before = copied(self.current), self.values
        without_own_wrappers(now)
        names = {**before, **now}
        return [n for n in names if not is_same(now.get(n, _MISSING), before.get(n, _MISSING))]

    def changes(self, *, may_grow: bool = False) -> Iterator[Any]:
        """Yield what is not as it was: of an attribute its name, else which dict and which key.

        Args:
            may_grow: let containers pass that hold what they held, and more.

        """
        if not self._is_plainly_as_before():
            yield from self.changed_names()
            for found, kept in self._all_hooks():
                yield from changed_keys(found, without_own(found), kept)
            for found, kept in self._all_registries():
                yield from changed_keys(found, found, kept)
            yield from map(id, filter(None, self._empties_of(OTHER_REGISTRIES)))
        yield from self.held.changes(may_grow=may_grow)

    def moved_state(
        self, module: nn.Module, given: Container[str], others: Collection[Forward]
    ) -> str:
        """Name what was changed and the next call of the forward of ``module`` would read.

        Args:
            module: whose content this is.
            given: attributes that are set from outside before each call.
            others: the forwards of the model, which may look at it as well.

        """
        held = self.held
        if not held and self._is_plainly_as_before():
            return ""
        forward = forward_of(module)
        for registry, kept in self._all_registries():
            if not same_items(registry, kept):
                changed = [n for n in {**registry, **kept} if registry.get(n) is not kept.get(n)]
                kind = _name_of(registry, module).strip("_")
                return f"its {kind}: {', '.join(changed)}"
        empties = self._empties_of(OTHER_REGISTRIES)
        filled = [(container, type(container)()) for container in empties if container]
        for container, content in (*held.containers, *filled):
            names = [name for name, value in self.values.items() if value is container]
            if moved_content(forward, names[0] if names else "", container, content):
                return "what it puts into a container"
        for current, earlier in held.objects:
            for name, value in copied(current).items():
                before = earlier.get(name)
                if before is not value and moved_in_object(forward, name, before, value):
                    return f".{name} of an object that it keeps"
        for name in self.changed_names():
            before, value = self.values.get(name), self.current.get(name)
            outer = [other for other in others if other != forward] if name in given else None
            if outer is not None and not is_moved_by(outer, name):
                continue
            if moved_attribute(forward, name, before, value, others):
                return f".{name}"
        return next((found.name for found in held.rewinders if found.moved()), "")

    def restore(self) -> None:
        """Put back what is not as it was."""
        if not self._is_plainly_as_before():
            restore_attributes(self.current, self.values)
            for registry, kept in self._all_registries():
                restore_container(registry, kept)
            for registry, kept in self._all_hooks():
                restore_hooks(registry, kept)
            for container in self._empties_of(OTHER_REGISTRIES):
                container.clear()
        if self.held is not _NOTHING:
            self.held.restore()

    def _all_hooks(self) -> Iterator[tuple[dict[Any, Any], dict[Any, Any]]]:
        """Yield each registry of hooks, and what it held."""
        yield from self.hooks
        yield from ((registry, {}) for registry in self._empties_of(HOOKS))

    def _all_registries(self) -> Iterator[tuple[Any, Any]]:
        """Yield each registry of parameters, buffers or submodules, and what it held."""
        yield from self.registries
        yield from ((registry, {}) for registry in self._empties_of(REGISTRIES))

    def _is_plainly_as_before(self) -> bool:
        """Say whether attributes, registries and hooks are as they were; if unsure, say no."""
        # Inlined, for it runs several times for each module of each trace.
        if self.hooks or any(self.empties):
            return False
        now, before = self.current, self.values
        # One call of C for each, for another thread that watches the module sets and deletes meanwhile.
        if not all(map(_IS, now.values(), before.values())) or list(now) != list(before):
            return False
        for now, before in self.registries:
            if not all(map(_IS, now.values(), before.values())) or list(now) != list(before):
                return False
        return True


class _ScriptContent(ModuleContent):
    """The same of a module of TorchScript, whose attributes are not Python's."""

    __slots__ = ("buffers", "module", "training")

    def __init__(self, module: nn.Module) -> None:
        self.current, self.values = {}, {}
        self.held, self.registries, self.empties = _NOTHING, [], ()
        registries = (vars(module).get(name) for name in HOOKS)
        self.hooks = [(found, without_own(found)) for found in registries if found is not None]
        self.module = module
        self.buffers = list(module.named_buffers(recurse=False))
        self.keep_flag()

    @property
    def flag(self) -> Any:
        return self.training

    @property
    def flag_moved(self) -> bool:
        return bool(self.module.training != self.training)

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

    def _restore_flag(self) -> None:
        if self.flag_moved:
            self.module.training = self.training


def content_of(module: nn.Module, seen: dict[int, int] | None = None) -> ModuleContent:
    """Return what ``module`` holds now.

    Args:
        module: the module.
        seen: where is noted what was looked into, and how deep, so that what many modules hold, as a
            configuration, is looked into once; each module looks for itself if there is none.

    """
    is_script = isinstance(module, torch.jit.ScriptModule)
    return _ScriptContent(module) if is_script else ModuleContent(module, seen)


_STANDARD = frozenset(vars(nn.Module()))
REGISTRIES = ("_parameters", "_buffers", "_modules")
# What a forward hook is registered in.
HOOKS = tuple(name for name in vars(nn.Module()) if name.startswith("_forward") and "hooks" in name)
OTHER_REGISTRIES = tuple(
    name
    for name, value in vars(nn.Module()).items()
    if isinstance(value, (dict, set)) and name not in (*REGISTRIES, *HOOKS)
)
_MOSTLY_EMPTY = (*HOOKS, *OTHER_REGISTRIES)
_MISSING = object()
_IS = operator.is_
# What most modules hold besides plain values; nothing is ever added to it.
_NOTHING = HeldContent()


def _name_of(registry: dict[Any, Any], module: nn.Module) -> str:
    return next(name for name, value in vars(module).items() if value is registry)
