"""What the modules of a model hold, looked at all together before and after each of many calls.

One by one, hundreds of modules take longer than the forward of a small model, and thousands of small
objects are made for them, which set off the garbage collector. So all values are put into one list, and
two such lists are compared by identity; only modules that differ are looked at by themselves.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from featuretap.inspecting.containers import copied, is_changed, same_items
from featuretap.inspecting.looking import is_a
from featuretap.keeping.content import (
    HOOKS,
    OTHER_REGISTRIES,
    REGISTRIES,
    ModuleContent,
    content_of,
)
from featuretap.keeping.held import DEPTH
from featuretap.keeping.held_content import LEAVES, HeldContent
from featuretap.keeping.put_back import without_own

__all__ = ["Contents", "Layout"]

_KEYS, _VALUES = operator.methodcaller("keys"), operator.methodcaller("values")
# Most modules have nothing in these.
_RARE = frozenset((*HOOKS, *OTHER_REGISTRIES))
_STANDARD = frozenset(vars(nn.Module()))
_DICTS = frozenset({dict, OrderedDict})


class Contents:
    """What some modules held when this was made, to be compared and put back.

    Args:
        modules: the modules.
        layout: of the last look at the same modules.

    Attributes:
        layout: for the next look.

    """

    def __init__(self, modules: Sequence[nn.Module], layout: Layout | None) -> None:
        if layout is None or not layout.fits(flat := _Flat(list(map(vars, layout.plain)))):
            layout = Layout(modules)
            flat = _Flat(list(map(vars, layout.plain)))
        self.layout, self._attributes = layout, flat
        self._all_registries = layout.registries(flat.values)
        self._registries = _Flat(list(filter(None, self._all_registries)))
        self._rare = layout.rare(flat.values)
        self._kept_rare = [(found, _copied(found)) for found in filter(None, self._rare)]
        seen: dict[int, int] = {}
        self._held = list(_held(layout, flat.values, seen))
        self._unusual = [(module, content_of(module, seen)) for module in layout.unusual]

    def changes(self) -> Iterator[tuple[int, Any]]:
        """Yield keys for what is not as it was, those of :meth:`.Untouched.changes`."""
        for module, content in self._parts():
            yield from ((id(module), change) for change in content.changes())

    def changed(self) -> list[nn.Module]:
        """Return the modules that hold something else now."""
        changed = {key for key, _ in self.changes()}
        if not changed:
            return []
        return [m for m in (*self.layout.plain, *self.layout.unusual) if id(m) in changed]

    def restore(self) -> None:
        """Put back what is not as it was."""
        for _, content in self._parts():
            content.restore()

    def _parts(self) -> Iterator[tuple[nn.Module, ModuleContent | HeldContent]]:
        yield from self._differing()
        yield from self._held
        yield from self._unusual

    def _differing(self) -> Iterator[tuple[nn.Module, ModuleContent]]:
        """Yield what was held by modules of which an attribute or a registry may be another one now."""
        attributes = _Flat(self._attributes.dicts)
        registries = _Flat(list(filter(None, self._all_registries)))
        changed = dict(self._changed_rare())
        if not registries.is_as(self._registries):
            kept = {id(found): content for found, content in self._registries.contents()}
            for found in self._all_registries:
                before = kept.get(id(found), {})
                if not same_items(found, before):
                    changed[id(found)] = found, before
        if not changed and attributes.is_as(self._attributes):
            return
        contents = zip(self.layout.plain, self._attributes.contents(), strict=True)
        for module, (current, values) in contents:
            inside = {n: changed[id(v)] for n, v in values.items() if id(v) in changed}
            if inside or not same_items(current, values):
                yield module, ModuleContent.of_before(module, values, inside)

    def _changed_rare(self) -> Iterator[tuple[int, tuple[Any, Any]]]:
        known = {id(found) for found, _ in self._kept_rare}
        filled = (found for found in filter(None, self._rare) if id(found) not in known)
        for found, before in (*self._kept_rare, *((found, type(found)()) for found in filled)):
            if is_changed(_copied(found), before):
                yield id(found), (found, before)


class Layout:
    """Where something lies in the list of all values of some modules, as long as their classes stay.

    Attributes:
        plain: the modules that are looked at together.
        unusual: the others: of TorchScript, with an iterator, or with a registry of a class of its own.
        registries: picks the dicts in which parameters, buffers and submodules are.
        rare: picks the other registries.
        opened: for each module the places of what may hold something that changes, if there is any.

    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.plain: list[nn.Module] = []
        self.unusual: list[nn.Module] = []
        for module in modules:
            (self.plain if _is_plain(module) else self.unusual).append(module)
        flat = _Flat(list(map(vars, self.plain)))
        self._names, self._kinds = flat.names, list(map(type, flat.values))
        self.registries = _picker([i for i, n in enumerate(self._names) if n in REGISTRIES])
        self.rare = _picker([i for i, n in enumerate(self._names) if n in _RARE])
        self.opened: list[tuple[nn.Module, list[int]]] = []
        start = 0
        for module, size in zip(self.plain, flat.sizes, strict=True):
            places = range(start, start + size)
            opened = [i for i in places if _is_opened(self._names[i], flat.values[i])]
            if opened:
                self.opened.append((module, opened))
            start += size

    def fits(self, flat: _Flat) -> bool:
        """Say whether what the modules hold now lies where it did."""
        return flat.names == self._names and list(map(type, flat.values)) == self._kinds


class _Flat:
    """The names and the values that some dicts hold, in one list each."""

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        self.dicts = dicts
        while True:
            self.sizes = list(map(len, dicts))
            try:
                self.names = list(chain.from_iterable(map(_KEYS, dicts)))
                self.values = list(chain.from_iterable(map(_VALUES, dicts)))
            except RuntimeError:
                continue
            # Another thread that watches the modules sets and deletes meanwhile.
            is_whole = len(self.names) == len(self.values) == sum(self.sizes)
            if is_whole and self.sizes == list(map(len, dicts)):
                return

    def is_as(self, other: _Flat) -> bool:
        """Say whether the same objects are under the same names in the same dicts."""
        return (
            self.sizes == other.sizes
            and all(map(operator.is_, self.dicts, other.dicts))
            and all(map(operator.is_, self.values, other.values))
            and self.names == other.names
        )

    def contents(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield each dict, and what it held."""
        start = 0
        for found, size in zip(self.dicts, self.sizes, strict=True):
            part = slice(start, start + size)
            yield found, dict(zip(self.names[part], self.values[part], strict=True))
            start += size


def _held(
    layout: Layout, values: Sequence[Any], seen: dict[int, int]
) -> Iterator[tuple[nn.Module, HeldContent]]:
    content = HeldContent()
    for module, places in layout.opened:
        for place in places:
            content.add(values[place], DEPTH, seen)
        # Often it is what another module has, too, and was looked into there.
        if content:
            yield module, content
            content = HeldContent()


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return what picks the values at ``places``: there are thousands, at every call."""
    return operator.itemgetter(*places) if len(places) > 1 else lambda values: []


def _copied(registry: Any) -> Any:
    return without_own(registry) if isinstance(registry, dict) else copied(registry)


def _is_plain(module: nn.Module) -> bool:
    values = vars(module)
    return (
        not isinstance(module, torch.jit.ScriptModule)
        and all(type(values.get(name)) in _DICTS for name in REGISTRIES)
        and all(type(values.get(name, {})) in (*_DICTS, set) for name in _RARE)
        and not any(is_a(value, Iterator) for value in values.values())
    )


def _is_opened(name: str, value: Any) -> bool:
    return not (name in _STANDARD or type(value) in LEAVES or is_a(value, nn.Module))
