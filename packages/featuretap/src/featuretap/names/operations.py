"""What ``torch.fx`` would call the operation that a torch-function mode sees.

The mode sees ``x / 2`` as ``Tensor.div`` and ``x += y`` as ``Tensor.add_``; fx records the operator
that was written. Where a method and an operator arrive as the same function, the bytecode
instruction that made the call tells them apart.
"""

from __future__ import annotations

import dis
import operator
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ..copying import clone_or_detach, map_tensors
from ..inspecting.remembering import by_code
from ..naming import BINARY, operation_name
from ..trace.indexing import is_method

__all__ = ["is_call", "iterates_a_tensor", "name_of"]

# Python's protocols, and statements: they have no value of their own.
_NO_NODE = frozenset(
    "__setitem__ __set__ __delete__ __bool__ __len__ __contains__ __int__ __float__ __complex__ "
    "__index__ __iter__ __format__ __repr__ __str__ __hash__ __array__ __reduce_ex__ __reduce__ "
    "__deepcopy__ __dir__ __dlpack__ __dlpack_device__ __setstate__ retain_grad backward "
    "register_hook is_nonzero".split()
)

# ``__rsub__`` and ``__isub__`` are what Python calls for ``-``.
_SPECIAL = {
    f"__{kind}{name.rstrip('_')}__": operation_name(getattr(operator, name))
    for name in BINARY
    for kind in ("", "r", "i")
} | {"__rdiv__": "truediv", "__idiv__": "truediv", "__div__": "truediv"}

# Methods that are also what an operator arrives as -> the operator. On the right, fx's name.
_SHARED_WITH_OPERATOR = {
    "div": "truediv",
    "true_divide": "truediv",
    "remainder": "mod",
    "positive": "pos",
    "bitwise_and": "and_",
    "bitwise_or": "or_",
    "bitwise_xor": "xor",
    "bitwise_not": "invert",
    "floor_divide": "floordiv",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "truediv",
    "floor_divide_": "floordiv",
    "remainder_": "mod",
    "pow_": "pow",
}
# Methods that arrive under another name -> what code calls them.
_ALIASES = {"numel": "nelement", "dim": "ndimension", "to_sparse": "to_sparse_coo"}
# ``+x`` is an intrinsic of Python 3.12 and later.
_OPERATOR_INSTRUCTIONS = ("BINARY_", "INPLACE_", "UNARY_", "CALL_INTRINSIC_1")
_LOADS_METHOD = ("LOAD_ATTR", "LOAD_METHOD")
# Python 3.11 makes hot calls of builtin functions at PRECALL already.
_CALL_INSTRUCTIONS = ("CALL", "PRECALL")
_WRAPPERS = (torch._tensor.__file__, torch.overrides.__file__)
# Where an extractor copies a feature, that is no operation of the model.
_COPIES = (map_tensors.__code__, clone_or_detach.__code__)
_ITERATION = torch.Tensor.__iter__.__code__


def name_of(func: Callable[..., Any], frame: types.FrameType | None) -> str | None:
    """Return the operation's name in fx, without a counter, or ``None`` if it is no node.

    Args:
        func: what the mode was given.
        frame: the Python frame that called it; ``None`` where frames cannot be looked at.

    """
    name, operator_name = _names(func)
    if name == "clone" and frame is not None and frame.f_code in _COPIES:
        return None
    if operator_name is not None and frame is not None and _is_operator(frame):
        return operator_name
    alias = _ALIASES.get(name or "")
    if alias is not None and frame is not None and alias in frame.f_code.co_names:
        return alias if _method_called(frame.f_code, frame.f_lasti) == alias else name
    return name


@lru_cache(maxsize=4096)
def _names(func: Callable[..., Any]) -> tuple[str | None, str | None]:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return "getattr", None
    if name in _NO_NODE:
        return None, None
    if name in _SPECIAL:
        return _SPECIAL[name], None
    method = is_method(func)
    return operation_name(name if method else func), (
        _SHARED_WITH_OPERATOR.get(name) if method else None
    )


def _is_operator(frame: types.FrameType | None) -> bool:
    # Some operators are functions in Python: ``x **= 2``.
    while frame is not None and frame.f_code.co_filename in _WRAPPERS:
        frame = frame.f_back
    if frame is None:
        return False
    return _instruction(frame.f_code, frame.f_lasti).startswith(_OPERATOR_INSTRUCTIONS)


def is_call(frame: types.FrameType) -> bool:
    """Say whether ``frame`` calls a function just now: what it asks for, that function asks for."""
    return _instruction(frame.f_code, frame.f_lasti).startswith(_CALL_INSTRUCTIONS)


def _instruction(code: types.CodeType, offset: int) -> str:
    return dis.opname[_bytecode(code)[offset]]


@by_code
def _bytecode(code: types.CodeType) -> bytes:
    return code.co_code  # from Python 3.11 on written anew at each look


@by_code
def _method_called(code: types.CodeType, offset: int) -> str:
    """Return the name of the method that is called at ``offset`` without arguments."""
    before = [i for i in dis.get_instructions(code) if i.offset < offset]
    return next((i.argval for i in reversed(before) if i.opname in _LOADS_METHOD), "")


def iterates_a_tensor(frame: types.FrameType | None) -> bool:
    """Say whether ``frame`` is ``Tensor.__iter__``, which fx knows as a look at each item."""
    return frame is not None and frame.f_code is _ITERATION
