"""One rule: (scope, operation) -> node name. Pure, constant time per node, knows nothing of fx.

A *scope* is the path of the innermost non-leaf module whose forward is running (``""`` at the
root). The rule has three parts:

1. a node is called ``scope.operation``, at the root ``operation`` alone;
2. repeats get ``_1``, ``_2``, ... counted in the scope, over all calls of its module;
3. the path of a module belongs to that module, whatever else is named alike: any other
   operation that would take it gets the next free suffix instead.

Both backends name with this object, which is what makes their names equal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator

__all__ = ["AUGMENTED", "BINARY", "Namer", "join", "operation_name", "without_counter"]

_CAMEL = re.compile(r"(?<=[a-z])([A-Z])")
_ILLEGAL = re.compile(r"[^0-9a-zA-Z_]+")
_COUNTER = re.compile(r"_[0-9]+$")

# The operators that Python can also do in place, as ``torch.fx`` calls them.
BINARY = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift".split()
# ``x += y`` is recorded as ``operator.iadd`` so that it stays in place, but the statement is an
# addition, and is called so.
AUGMENTED = {f"i{name.rstrip('_')}": name for name in BINARY}


def join(scope: str, name: str) -> str:
    """Join a module path and a name inside it.

    >>> join("layer1.0", "add"), join("", "add")
    ('layer1.0.add', 'add')
    """
    return f"{scope}.{name}" if scope and name else scope or name


def operation_name(target: str | Callable[..., object]) -> str:
    """Name an operation the way ``torch.fx`` names its nodes, without any counter.

    Args:
        target: a function, or the name of a tensor method.

    >>> import operator
    >>> operation_name(operator.iadd), operation_name("add_"), operation_name("__getitem__")
    ('add', 'add_', 'getitem')

    """
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    if not isinstance(target, str) and getattr(target, "__module__", "") == "_operator":
        name = AUGMENTED.get(name, name)
    name = _ILLEGAL.sub("_", _CAMEL.sub(r"_\1", name).lower())
    return f"_{name}" if name[:1].isdigit() else name


def without_counter(name: str) -> str:
    """Return what a name was made of, if it is that of a repeat.

    >>> without_counter("layer1.0.add_2"), without_counter("layer1.0.add")
    ('layer1.0.add', 'layer1.0.add')
    """
    return _COUNTER.sub("", name)


def paths_above(name: str) -> Iterator[str]:
    """Yield the paths of the modules that ``name`` would be in, outermost first, without the model itself.

    >>> list(paths_above("layer1.0.add"))
    ['layer1', 'layer1.0']

    """
    for end, character in enumerate(name):
        if character == ".":
            yield name[:end]


class Namer:
    """Gives each node of one forward its name, in the order in which the nodes are met.

    Args:
        module_paths: the paths of all modules; no other node is given one of these.

    >>> namer = Namer({"conv_1", "relu"})
    >>> [namer.operation("", "relu"), namer.module("relu"), namer.module("relu")]
    ['relu_1', 'relu', 'relu_2']

    """

    def __init__(self, module_paths: Collection[str]) -> None:
        self._reserved = module_paths
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def operation(self, scope: str, operation: str) -> str:
        """Name an operation that runs in ``scope``."""
        base = join(scope, operation)
        if base not in self._used and base not in self._reserved:
            self._used.add(base)
            return base
        return self._suffixed(base)

    def module(self, path: str) -> str:
        """Name a call of the module at ``path``: the path itself, then ``path_1``, ``path_2``, ..."""
        if path not in self._used:
            self._used.add(path)
            return path
        return self._suffixed(path)

    def has_named_in(self, path: str) -> bool:
        """Say whether something inside of the module at ``path`` has a name already."""
        return any(name.startswith(f"{path}.") for name in self._used)

    def _suffixed(self, base: str) -> str:
        for count in itertools.count(self._next.get(base, 1)):
            name = f"{base}_{count}"
            if name not in self._used and name not in self._reserved:
                self._next[base] = count + 1
                self._used.add(name)
                return name
        raise AssertionError("unreachable: the counter is infinite")
