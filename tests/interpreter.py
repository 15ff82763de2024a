"""What the source of a model computes, node by node: a plain interpreter on real tensors.

It shares no code with featuretap, and names by its own reading of rules N1 to N6. It knows as much
of Python as :mod:`random_models` writes.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from support import copied

__all__ = ["Reference"]


class _Value:
    """A value of the forward, and whether it depends on the inputs or on a parameter."""

    def __init__(self, value: Any, depends: bool = False) -> None:
        self.value = value
        self.depends = depends


_BINARY = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv",
    ast.Pow: "pow", ast.MatMult: "matmul", ast.Gt: "gt", ast.USub: "neg",
}  # fmt: skip
_GLOBALS = {"torch": torch, "F": F, "math": math, "range": range}


class Reference:
    """One forward of ``model``, statement by statement on real tensors.

    Attributes:
        names: the listed nodes, each with a copy of its value, in execution order.
        calls: what each call of a module that is looked into returned.

    """

    def __init__(self, source: str, model: nn.Module, *inputs: torch.Tensor) -> None:
        self.names: dict[str, Any] = {}
        self.calls: dict[str, Any] = {}
        self._trees = {
            tree.name: tree.body[-1]
            for tree in ast.parse(source).body
            if isinstance(tree, ast.ClassDef)
        }
        self._paths = {module: path for path, module in model.named_modules()}
        self._reserved = {path for path, _ in model.named_modules(remove_duplicate=False)}
        self._parameters = {id(value): name for name, value in model.named_parameters()}
        self._tainted: set[int] = set()
        self._alive: list[Any] = []
        arguments = [_Value(tensor, True) for tensor in inputs]
        for argument, name in zip(arguments, self._arguments(model)[1:], strict=True):
            self._record("", name, argument.value)
        self._call(model, arguments, {})

    # -- names (N2, N4, N5, N6) ---------------------------------------------------------------

    def _free(self, path: str, taken: Any) -> str:
        names = (f"{path}_{count}" if count else path for count in range(10**6))
        return next(name for name in names if name not in taken)

    def _record(self, scope: str, operation: str, value: Any) -> None:
        path = f"{scope}.{operation}" if scope else operation
        self.names[self._free(path, {*self.names, *self.calls, *self._reserved})] = copied(value)

    def _module_name(self, path: str) -> str:
        """The first call has exactly the path."""
        used = {*self.names, *self.calls}
        return path if path not in used else self._free(path, {*used, *self._reserved})

    # -- modules --------------------------------------------------------------------------------

    def _arguments(self, module: nn.Module) -> list[str]:
        return [argument.arg for argument in self._trees[type(module).__name__].args.args]

    def _call(self, module: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
        path, kind = self._paths[module], type(module).__name__
        if kind != "Sequential" and kind not in self._trees:
            has_parameters = next(module.parameters(), None) is not None
            return self._run(module, args, kwargs, leaf=path, depends=has_parameters)
        name = self._module_name(path)
        self.calls[name] = None
        if kind == "Sequential":
            (result,) = args
            for child in module.children():
                result = self._call(child, [result], {})
        else:
            frame = dict(zip(self._arguments(module), [module, *args], strict=False)) | kwargs
            result = _Forward(self, path, frame).run(self._trees[kind].body)
        self.calls[name] = copied(plain(result))
        return result

    # -- operations -----------------------------------------------------------------------------

    def depends(self, value: _Value) -> bool:
        storage = isinstance(value.value, torch.Tensor) and storage_of(value.value)
        return value.depends or storage in self._tainted or id(value.value) in self._parameters

    def _run(
        self,
        function: Any,
        args: list[Any],
        kwargs: dict[str, Any],
        scope: str = "",
        operation: str | None = None,
        leaf: str | None = None,
        written: Any = None,
        depends: bool = False,
    ) -> _Value:
        """Run one operation, and record it if it is a node (N1)."""
        used = [value for value in leaves([args, kwargs]) if self.depends(value)]
        for value in used:
            path = self._parameters.pop(id(value.value), None)
            if path is not None:
                self._tainted.add(storage_of(value.value))
                self._record("", path, value.value)
        depends = depends or bool(used)
        name = self._module_name(leaf) if leaf is not None and depends else None
        value = function(*plain(args), **plain(kwargs))
        self._alive.append(value)
        if depends and written is not None:
            self._tainted.add(storage_of(written.value))
        if name is not None:
            self.names[name] = copied(value)
        elif depends and operation is not None:
            self._record(scope, operation, value)
        return _Value(value, depends)


class _Forward:
    """The forward of one call of a module."""

    def __init__(self, reference: Reference, scope: str, variables: dict[str, Any]) -> None:
        self._reference = reference
        self._scope = scope
        self._variables = variables

    def run(self, body: list[ast.stmt]) -> Any:
        """Run statements; the value of ``return``, if there is one."""
        result = None
        for statement in body:
            match statement:
                case ast.Return(value):
                    result = self.value(value)
                case ast.Expr(value):
                    self.value(value)
                case ast.Assign([target], value):
                    self._assign(target, self.value(value))
                case ast.AugAssign(target, operation, value):
                    self._augment(target, f"i{_BINARY[type(operation)]}", value)
                case ast.If(test, body, other):
                    self.run(body if plain(self.value(test)) else other)
                case ast.With([item], body):
                    with plain(self.value(item.context_expr)):
                        self.run(body)
                case ast.For(_, iterable, body):
                    for _ in plain(self.value(iterable)):
                        self.run(body)
        return result

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(name):
                self._variables[name] = value
            case ast.Tuple(targets):
                if isinstance(value, _Value):
                    items = range(len(value.value))
                    value = [self._operation("getitem", value, _Value(item)) for item in items]
                for part, item in zip(targets, value, strict=True):
                    self._assign(part, item)
            case ast.Subscript(owner, index):
                self._set_item(self.value(owner), self.value(index), value)

    def _set_item(self, owner: _Value, index: Any, value: Any) -> None:
        self._reference._run(operator.setitem, [owner, index, value], {}, written=owner)

    def _augment(self, target: ast.expr, name: str, value: ast.expr) -> None:
        if isinstance(target, ast.Subscript):
            owner, index = self.value(target.value), self.value(target.slice)
            before = self._operation("getitem", owner, index)
            after = self._operation(name, before, self.value(value), written=before)
            self._set_item(owner, index, after)
        else:
            before = self.value(target)
            after = self._operation(name, before, self.value(value), written=before)
            self._assign(target, after)

    def _operation(self, name: str, *args: Any, written: Any = None) -> _Value:
        called = name.removeprefix("i") if name[1:] in _BINARY.values() else name
        function = getattr(operator, name)
        return self._reference._run(function, list(args), {}, self._scope, called, written=written)

    def value(self, node: ast.expr | None) -> Any:
        """Evaluate an expression, in the order of Python."""
        match node:
            case None:
                return None
            case ast.Constant(value):
                return _Value(value)
            case ast.Name(name):
                return self._variables[name] if name in self._variables else _GLOBALS[name]
            case ast.Tuple(items):
                return tuple(map(self.value, items))
            case ast.List(items):
                return list(map(self.value, items))
            case ast.Dict(keys, items):
                return {
                    plain(self.value(k)): self.value(v) for k, v in zip(keys, items, strict=True)
                }
            case ast.Slice(lower, upper, step):
                return _Slice(self.value(lower), self.value(upper), self.value(step))
            case ast.IfExp(test, body, other):
                return self.value(body if plain(self.value(test)) else other)
            case ast.BinOp(left, operation, right) | ast.Compare(left, [operation], [right]):
                operands = self.value(left), self.value(right)
                return self._operation(_BINARY[type(operation)], *operands)
            case ast.UnaryOp(operation, operand):
                return self._operation(_BINARY[type(operation)], self.value(operand))
            case ast.Subscript(owner, index):
                owner, index = self.value(owner), self.value(index)
                if isinstance(owner, _Value):
                    return self._operation("getitem", owner, index)
                return owner[plain(index)]
            case ast.Attribute(owner, name):
                return self._attribute(self.value(owner), name)
            case ast.Call(function, args, keywords):
                return self._call(function, args, keywords)
        raise AssertionError(ast.dump(node))

    def _attribute(self, owner: Any, name: str) -> Any:
        if isinstance(owner, _Value):
            return self._reference._run(getattr, [owner, _Value(name)], {}, self._scope, "getattr")
        value = getattr(owner, name)
        return value if isinstance(value, (nn.Module, ModuleType)) else _Value(value)

    def _call(self, function: ast.expr, args: Any, keywords: Any) -> Any:
        owner = self.value(function.value) if isinstance(function, ast.Attribute) else None
        name = getattr(function, "attr", "")
        arguments = [self.value(argument) for argument in args]
        named = {keyword.arg: self.value(keyword.value) for keyword in keywords}
        if isinstance(owner, nn.Module):
            return self._reference._call(getattr(owner, name), arguments, named)
        if isinstance(owner, _Value):
            arguments.insert(0, owner)
            call = lambda first, *rest, **named: getattr(first, name)(*rest, **named)
        else:
            call = getattr(owner, name) if owner is not None else plain(self.value(function))
        writes = name.endswith("_") or "inplace" in named
        written = named.get("out", arguments[0] if writes else None)
        return self._reference._run(
            call, arguments, named, self._scope, name or None, written=written
        )


@dataclass
class _Slice:
    lower: Any
    upper: Any
    step: Any


def leaves(value: Any) -> Iterator[_Value]:
    """Yield what containers hold."""
    if isinstance(value, _Value):
        yield value
    elif isinstance(value, _Slice):
        yield from leaves([value.lower, value.upper, value.step])
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))


def plain(value: Any) -> Any:
    """Return the real values, containers included."""
    if isinstance(value, _Value):
        return value.value
    if isinstance(value, _Slice):
        return slice(plain(value.lower), plain(value.upper), plain(value.step))
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
