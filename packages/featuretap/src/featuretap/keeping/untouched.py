"""A model as it was: flags, attributes, hooks, containers, helper objects, and state outside of it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import nn

from ..inspecting.reading import Forward, forward_of, set_by_call
from ..inspecting.whose import is_of_torch
from ..modules import switch
from .content import ModuleContent, content_of
from .outside import Outside
from .state import sets_elsewhere

__all__ = ["Untouched"]


class Untouched:
    """A model as it was when this was made: flags, attributes, registries, hooks, own random generators.

    The content of tensors is kept by :class:`.SavedTensors`, by whoever is about to write them.

    Attributes:
        modules: those of the model, and those that they hold in other ways, as in a list.

    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = list(model.modules())
        self._modules: dict[int, ModuleContent] = {}
        self.modules: list[nn.Module] = []
        self._add(self._parts)
        self._outside = Outside.of(self.forwards)

    def _add(self, modules: Iterable[nn.Module]) -> None:
        """Keep modules, and models that they hold and that are no children: their modes may be switched."""
        for module in modules:
            if id(module) not in self._modules:
                self.modules.append(module)
                content = self._modules[id(module)] = content_of(module)
                for hidden in content.held.modules:
                    self._add(hidden.modules())

    def restore(self, subtree: nn.Module | None = None) -> None:
        """Undo what happened since this object was made, to all modules or to one subtree."""
        if subtree is None:
            # Not with a subtree: what is outside of the modules belongs to none of them.
            self._outside.restore()
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
            switch(model, training)
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
            changed = content.changed_attribute(part) if content is not None else ""
            if changed:
                return changed
        return ""

    def moved_for(self, module: nn.Module) -> str:
        """Name what was changed that code of ``module``, or of a module inside it, reads."""
        own = (part for part in module.modules() if not is_of_torch(type(part)))
        moved = (self.moved_state(part, self.given(part), is_certain=True) for part in own)
        return next(filter(None, moved), "")

    def changes(self, *, may_grow: bool = False) -> set[Any]:
        """Return keys for what is not as it was, to be compared with those of another moment.

        Args:
            may_grow: let containers of the modules pass that hold what they held, and more.

        """
        return {
            (key, change)
            for key, content in self._modules.items()
            for change in content.changes(may_grow=may_grow)
        }.union(self._outside.changes())

    @property
    def context_variables(self) -> set[Any]:
        """The keys for the context variables that the forwards mention."""
        return self._outside.context_variables

    @cached_property
    def sets_elsewhere(self) -> bool:
        """Whether some forward may set attributes of other modules."""
        return any(map(sets_elsewhere, self.forwards))

    @cached_property
    def forwards(self) -> frozenset[Forward]:
        """The forwards of the modules, each once."""
        # By class first, for most modules of a model are of few.
        alike = {(type(part), id(vars(part).get("forward"))): part for part in self._parts}
        return frozenset(map(forward_of, alike.values()))

    def given(self, module: nn.Module) -> list[str]:
        """Name the attributes of ``module`` that were set before its call."""
        content = self._modules.get(id(module)) if self.sets_elsewhere else None
        if content is None:
            return []
        # What its own ``__call__`` sets is set by nobody else.
        kind: Any = type(module)
        own = set_by_call(kind)
        return [name for name in content.changed_names() if name not in own]

    def moved_state(
        self, module: nn.Module, given: Container[str], *, is_certain: bool = False
    ) -> str:
        """Name what was changed in ``module`` and the next call of its forward would read.

        A buffer, tensor or submodule that was exchanged, a number that is counted, a container that
        was filled, the ``training`` flag of the module or of one it calls.

        Args:
            module: the module.
            given: attributes that are set before each call.
            is_certain: leave out what may have moved, for nobody can tell.

        """
        content = self._modules.get(id(module))
        if content is None:
            return ""
        if content.flag_moved:
            return "the training flag of itself"
        for name, part in module._modules.items():
            kept = self._modules.get(id(part))
            if kept is not None and kept.flag_moved:
                return f"the training flag of {name}"
        moved = content.moved_state(module, given, self.forwards)
        if not moved and self._outside:
            moved = self._outside.moved(forward_of(module), is_certain=is_certain)
        return moved
