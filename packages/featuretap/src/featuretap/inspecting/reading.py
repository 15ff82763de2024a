"""The code that a forward runs, read off its bytecode; nothing is run.

Read are the forward, and the methods and functions that it calls by name.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import types
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from .looking import is_a
from .remembering import by_code, by_forward
from .whose import (
    is_users,
    is_users_module,
)

__all__ = [
    "CHANGES_CONTAINERS",
    "CachedFunction",
    "Forward",
    "Step",
    "codes_in",
    "forward_of",
    "functions_of",
    "instructions_of",
    "kinds_of",
    "names_in",
    "names_of_code",
    "set_by_call",
    "steps_of",
    "variables_of",
]

_MOST_OF_LIBRARY = 64
# What ``functools.cache`` makes of a function.
CachedFunction = type(functools.lru_cache(len))

# Methods by which a container comes to hold something else.
CHANGES_CONTAINERS = frozenset(
    "append appendleft extend extendleft insert add update setdefault put push pop popleft popitem "
    "remove discard clear rotate reverse sort move_to_end subtract intersection_update "
    "difference_update symmetric_difference_update __setitem__ __delitem__ __iadd__ __ior__".split()
)


class Forward(NamedTuple):
    """The code that a call of a module runs.

    Attributes:
        kind: the class of the module, where methods are looked up.
        function: its forward.

    """

    kind: type
    function: Any


def forward_of(module: nn.Module) -> Forward:
    """Return the forward of ``module``, which may be one of its own."""
    kind, own = type(module), vars(module).get("forward")
    # What stands for a forward while featuretap-hooks watches it is no function.
    function = None if own is None else getattr(own, "__func__", own)
    is_function = isinstance(function, types.FunctionType)
    return Forward(kind, function if is_function else getattr(kind, "forward", None))


class _Code(NamedTuple):
    instructions: tuple[dis.Instruction, ...]
    functions: tuple[types.FunctionType, ...]
    kinds: tuple[type, ...]


def functions_of(forward: Forward) -> tuple[types.FunctionType, ...]:
    """Return the function of a forward, and those that it calls by name."""
    return _code_of(forward).functions


def instructions_of(forward: Forward) -> tuple[dis.Instruction, ...]:
    """Return the instructions of a forward, those of what it calls by name where they are called."""
    return _code_of(forward).instructions


def kinds_of(forward: Forward) -> tuple[type, ...]:
    """Return the class of a forward, and those of the user's that it names, or has an object of."""
    return _code_of(forward).kinds


@by_forward
def names_in(forward: Forward) -> frozenset[str]:
    """Return the names that a forward, or what it calls by name, mentions."""
    return frozenset(i.argval for i in instructions_of(forward) if isinstance(i.argval, str))


@by_forward
def _code_of(forward: Forward) -> _Code:
    reader = _Reader(forward.kind)
    functions = (_own_call(forward.kind), forward.function)
    instructions = tuple(found for function in functions for found in reader.function(function))
    functions_read = tuple(filter(None, reader.seen.values()))
    return _Code(instructions, functions_read, tuple(reader.kinds))


def _own_call(kind: type) -> Any:
    """Return the ``__call__`` that the user gave a class of modules, which runs around the forward."""
    for base in kind.__mro__:
        # Not through the attribute: while fx traces, that of ``nn.Module`` is another one.
        if base is nn.Module:
            break
        if "__call__" in vars(base) and is_users(base):
            return vars(base)["__call__"]
    return None


@functools.lru_cache(maxsize=1024)
def set_by_call(kind: Any) -> frozenset[str]:
    """Return the attributes that the ``__call__`` of a class of modules sets, if it has one of its own."""
    reader = _Reader(kind)
    steps = steps_of(reader.function(_own_call(kind)))
    return frozenset(step.argument for step in steps if step.sets_attribute)


def variables_of(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables that a function finds in the scopes around it."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


@functools.lru_cache(maxsize=4096)
def _is_installed(top: str) -> bool:
    """Say whether a package was installed, and is no file of a project."""
    path = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path or top in sys.stdlib_module_names


class _Reader:
    """Reads a function, and what it calls by name: functions, and methods of the classes it meets.

    Args:
        kind: the class whose method the function is.

    Attributes:
        seen: the code that was read -> its function, ``None`` for code inside of a function.
        kinds: the class whose method the function is, and those that the code names.
        modules: the Python modules that it names, or imports.

    """

    def __init__(self, kind: type) -> None:
        self.seen: dict[types.CodeType, types.FunctionType | None] = {}
        self.kinds = [kind]
        self._own = kind.__module__.partition(".")[0]
        self._of_library: Counter[str] = Counter()
        self.modules: list[types.ModuleType] = []

    def function(self, function: Any) -> Iterator[dis.Instruction]:
        """Yield the instructions of ``function``, those of what it calls where they are called."""
        if isinstance(function, types.FunctionType) and function.__code__ not in self.seen:
            if not self._may_read(function):
                return
            self.seen[function.__code__] = function
            names = ChainMap(variables_of(function), function.__globals__)
            yield from self._code(function.__code__, names)

    def _may_read(self, function: types.FunctionType) -> bool:
        """Say so of the model's own code, and of some of each library: one may lead through all of it."""
        top = str(function.__module__).partition(".")[0]
        if top == self._own or not _is_installed(top):
            return True
        self._of_library[top] += 1
        return self._of_library[top] <= _MOST_OF_LIBRARY

    def _code(self, code: types.CodeType, names: Mapping[str, Any]) -> Iterator[dis.Instruction]:
        for instruction in dis.get_instructions(code):
            yield instruction
            value = instruction.argval
            if isinstance(value, types.CodeType):
                if value not in self.seen:
                    self.seen[value] = None
                    yield from self._code(value, names)
            elif not isinstance(value, str):
                continue
            elif instruction.opname in ("LOAD_GLOBAL", "LOAD_DEREF"):
                yield from self._variable(names.get(value))
            elif instruction.opname == "IMPORT_NAME":
                yield from self._variable(sys.modules.get(value))
            elif (
                instruction.opname == "IMPORT_FROM"
                or "ATTR" in instruction.opname
                or "METHOD" in instruction.opname
            ):
                yield from self._attribute(value)

    def _variable(self, value: Any) -> Iterator[dis.Instruction]:
        if type(value) is CachedFunction:
            value = value.__wrapped__
        elif is_a(value, functools.partial):
            value = value.func
        if is_a(value, types.FunctionType):
            if not str(value.__module__).startswith("torch."):
                yield from self.function(value)
            return
        if is_a(value, types.ModuleType):
            if value not in self.modules and is_users_module(value.__name__):
                self.modules.append(value)
            return
        kind = value if is_a(value, type) else type(value)
        if kind not in self.kinds and is_users(kind):
            self.kinds.append(kind)

    def _attribute(self, name: str) -> Iterator[dis.Instruction]:
        for kind in list(self.kinds):
            for base in kind.__mro__[:-1]:
                found = vars(base).get(name) if base is not nn.Module else None
                if isinstance(found, property):
                    yield from self.function(found.fget)
                    yield from self.function(found.fset)
                elif (
                    isinstance(found, (staticmethod, classmethod)) or type(found) is CachedFunction
                ):
                    yield from self.function(found.__wrapped__)
                else:
                    yield from self.function(found)
        for module in list(self.modules):
            yield from self._variable(vars(module).get(name))


class Step(NamedTuple):
    """An instruction; one that newer Pythons have for two variables is two."""

    name: str
    argument: Any
    shown: str

    @property
    def is_variable(self) -> bool:
        """Whether it loads a variable of the function."""
        return self.name.startswith("LOAD_FAST")

    @property
    def sets_attribute(self) -> bool:
        """Whether it sets or deletes an attribute."""
        return self.name in ("STORE_ATTR", "DELETE_ATTR")

    @property
    def sets_item(self) -> bool:
        """Whether it sets or deletes an item."""
        return self.name in ("STORE_SUBSCR", "STORE_SLICE", "DELETE_SUBSCR")

    @property
    def is_in_place(self) -> bool:
        """Whether it is ``+=`` or its like."""
        is_augmented = self.name == "BINARY_OP" and self.shown.endswith("=")
        return is_augmented or self.name.startswith("INPLACE_")


def steps_of(instructions: Iterable[dis.Instruction]) -> Iterator[Step]:
    """Yield what ``instructions`` do, one by one."""
    for instruction in instructions:
        name, argument = instruction.opname, instruction.argval
        if isinstance(argument, tuple) and "FAST" in name:
            first = "STORE_FAST" if name.startswith("STORE") else "LOAD_FAST"
            second = "STORE_FAST" if name.endswith("STORE_FAST") else "LOAD_FAST"
            yield Step(first, argument[0], "")
            yield Step(second, argument[1], "")
        elif name not in ("EXTENDED_ARG", "PRECALL"):
            yield Step(name, argument, instruction.argrepr)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield ``code``, and that of the functions and classes inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


@by_code
def names_of_code(code: types.CodeType) -> frozenset[str]:
    """Return the names that ``code`` mentions, and the functions and classes inside of it."""
    return frozenset(name for part in codes_in(code) for name in part.co_names)
