"""Caches of what a module computes from its parameters, cold while a forward is recorded.

The attention biases of LeViT in eval mode, for one, are computed by the first forward and looked up by
those after it::

    if key not in self.cache:
        self.cache[key] = self.biases[:, self.indices]

A recorded forward does it each time, as under fx, so that its operations have the same names before and
after the model has run. What was cached before is there again afterwards.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn

from featuretap._compat import draws_random_numbers
from featuretap.inspecting.reading import Forward, forward_of, instructions_of, names_in
from featuretap.inspecting.remembering import by_forward
from featuretap.inspecting.whose import is_of_torch

__all__ = ["cold_caches", "modules_with_caches"]

_LOCK = threading.Lock()


class _Cold(MutableMapping, dict):  # type: ignore[misc, metaclass, type-arg]
    """Stands for a cache: empty for the threads that record, as it was for all others.

    Attributes:
        cached: the cache itself.
        made: the thread that records -> what it has put there.

    """

    def __init__(self, cached: dict[Any, Any]) -> None:
        super().__init__()
        self.cached = cached
        self.made: dict[int, dict[Any, Any]] = {}

    @property
    def _of_this_thread(self) -> dict[Any, Any]:
        return self.made.get(threading.get_ident(), self.cached)

    def __contains__(self, key: Any) -> bool:
        return key in self._of_this_thread

    def __getitem__(self, key: Any) -> Any:
        own = self._of_this_thread
        return own[key] if key in own else self.cached[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._of_this_thread[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._of_this_thread[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._of_this_thread)

    def __len__(self) -> int:
        return len(self._of_this_thread)

    def copy(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.cached, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self.cached),)


def modules_with_caches(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Return each module that has such a cache, and the name of the attribute that it is."""
    return [
        (module, name)
        for module in modules
        if not is_of_torch(type(module))
        for name in _caches(forward_of(module))
    ]


@contextmanager
def cold_caches(caches: Iterable[tuple[nn.Module, str]]) -> Iterator[None]:
    """While entered, this thread finds these caches empty."""
    thread = threading.get_ident()
    entered: list[tuple[nn.Module, str, _Cold]] = []
    with _LOCK:
        for module, name in caches:
            found = vars(module).get(name)
            if type(found) is dict and found:
                found = vars(module)[name] = _Cold(found)
            if isinstance(found, _Cold) and thread not in found.made:
                found.made[thread] = {}
                entered.append((module, name, found))
    try:
        yield
    finally:
        with _LOCK:
            for module, name, cache in entered:
                new = cache.made.pop(thread)
                for key in new.keys() - cache.cached.keys():
                    cache.cached[key] = new[key]
                if not cache.made and vars(module).get(name) is cache:
                    vars(module)[name] = cache.cached


@by_forward
def _caches(forward: Forward) -> tuple[str, ...]:
    """Read off the code which attributes are filled from other attributes alone, where a key is missing."""
    code = [i for i in instructions_of(forward) if i.opname != "EXTENDED_ARG"]
    found: dict[str, bool] = {}
    for place, instruction in enumerate(code):
        if instruction.opname != "CONTAINS_OP" or "ATTR" not in code[place - 1].opname:
            continue
        name, key = str(code[place - 1].argval), _variables(code[max(place - 4, 0) : place])
        until = next((n for n, i in enumerate(code[place:]) if i.opname == "STORE_SUBSCR"), 0)
        filling = code[place + 1 : place + until]
        is_filled = any(i.argval == name for i in filling)
        # Of attributes of the module: what is made of nothing else may be state, as a first sum is.
        reads = {
            i.argval for b, i in pairwise(filling) if b.argval == "self" and "ATTR" in i.opname
        }
        is_pure = _variables(filling) <= key | {"self"} and not any(map(_may_draw, filling))
        found[name] = is_filled and bool(reads - {name}) and is_pure
    stores = sum(i.opname == "STORE_SUBSCR" for i in code)
    if stores != 1 or any(map(_writes, names_in(forward))):
        return ()
    return tuple(name for name, is_cache in found.items() if is_cache)


def _writes(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _may_draw(instruction: Any) -> bool:
    return isinstance(instruction.argval, str) and draws_random_numbers(instruction.argval)


def _variables(code: Iterable[Any]) -> set[str]:
    """Return the variables that are read, two at a time by newer Pythons."""
    values = [i.argval for i in code if i.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))]
    return {str(v) for value in values for v in (value if isinstance(value, tuple) else (value,))}
