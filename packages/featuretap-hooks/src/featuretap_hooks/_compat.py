"""The private corners of torch that featuretap-hooks leans on, one small function each.

Each says on which torch versions it was checked.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch._higher_order_ops
import torch.utils.checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode

from featuretap._compat import is_compiled_in_place
from featuretap.inspecting.looking import is_a
from featuretap.trace.indexing import is_method

__all__ = [
    "CALLERS_OF_FORWARD",
    "add_hooks",
    "any_sharded",
    "any_wrapped",
    "call_uncompiled",
    "calling_modules",
    "control_flow",
    "dynamo_callback",
    "dynamo_follows_exceptions",
    "graph_target",
    "has_backward_hooks",
    "is_called_plainly",
    "is_checkpointing",
    "is_compiled_function",
    "is_jit_tracing",
    "is_met_by_dynamo",
    "kept_from_dynamo",
    "map_as_plain",
    "modes_are_on",
    "namespaces_of_operators",
    "pop_mode",
    "push_mode",
    "registered_operators",
    "remove_hooks",
    "run_by_dynamo",
    "take_out_modes",
]

_CALL: types.CodeType = nn.Module.__call__.__code__


def calling_modules(frame: types.FrameType | None) -> Iterator[nn.Module]:
    """Yield the modules whose call ``frame`` is in, innermost first.

    Reads the frames of ``nn.Module.__call__``. Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    while frame is not None:
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def control_flow() -> dict[str, Callable[..., Any]]:
    """Return ``torch.cond`` and its like, which run dynamo on functions of the forward.

    Checked on torch 2.4.1, which has no ``flex_attention``, and 2.15.0.
    """
    modules = "torch torch._higher_order_ops torch._higher_order_ops.map torch.nn.attention.flex_attention"
    spaces = [sys.modules[module] for module in modules.split() if module in sys.modules]
    names = "cond while_loop scan associative_scan map flex_attention create_block_mask".split()
    found = [(name, vars(space).get(name)) for space in spaces for name in names]
    return {name: value for name, value in found if isinstance(value, types.FunctionType)}


# What ``torch.jit.trace`` records this thread with; ``None`` where it does not. Asked in each forward, and
# so without a function of our own. Checked on torch 2.4.1 and 2.15.0.
is_jit_tracing: Callable[[], Any] = torch._C._get_tracing_state


def is_checkpointing(frame: types.FrameType) -> bool:
    """Say whether ``frame`` is activation checkpointing itself, which asks more on a GPU.

    Checked on torch 2.4.1, 2.11.0 (CUDA) and 2.15.0.
    """
    return frame.f_code.co_filename == torch.utils.checkpoint.__file__


def namespaces_of_operators() -> list[Any]:
    """Return where the functions behind ``torch.fft.fft`` and the like are, under their own names.

    Checked on torch 2.4.1 and 2.15.0.
    """
    names = "_VariableFunctions _fft _linalg _special _nn _sparse _nested".split()
    found = (getattr(torch._C, name, None) for name in names)
    return [space for space in found if space is not None]


def registered_operators() -> Iterator[tuple[str, str]]:
    """Yield the name and the overload of every operator that torch knows, also of the user's own.

    Checked on torch 2.4.1 and 2.15.0.
    """
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.rpartition("::")[2].partition(".")
        yield name, overload or "default"


def graph_target(func: Callable[..., Any]) -> Any:
    """Return what ``func`` would be in a graph: the name of a method, or the function.

    Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    return func.__name__ if is_method(func) else func


def any_sharded(modules: Iterable[nn.Module]) -> bool:
    """Say whether some of ``modules`` is sharded by FSDP2, which gives it a class of its own.

    Asked in each forward, so it looks for such classes first. Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None or not kind.__subclasses__():
        return False
    return any(isinstance(module, kind) for module in modules)


def any_wrapped(modules: Iterable[nn.Module]) -> bool:
    """Say whether some of ``modules`` is a wrapper of FSDP's first version. Checked as above."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FullyShardedDataParallel", None)
    return kind is not None and any(isinstance(module, kind) for module in modules)


def _callers_of_forward() -> tuple[types.CodeType, ...]:
    """Return the code from which torch runs the forward of a module that is called, the usual one first.

    Where there are hooks it runs in a function inside of ``_call_impl``; under ``torch.jit.trace`` in
    ``_slow_forward``. A tuple, for a set would hash the code. Checked on torch 2.4.1 and 2.15.0.
    """
    names = ("_call_impl", "_wrapped_call_impl", "_slow_forward")
    codes = [getattr(nn.Module, name).__code__ for name in names]
    inner = [c for code in codes for c in code.co_consts if isinstance(c, types.CodeType)]
    return (*codes, *inner)


CALLERS_OF_FORWARD = _callers_of_forward()


def is_called_plainly(attributes: Mapping[str, Any]) -> bool:
    """Say whether a call of the module with these attributes runs its forward and nothing else.

    No hooks, and no compiled code: reads what ``nn.Module.__call__`` reads. Checked on torch 2.4.1 and
    2.15.0.
    """
    return not (
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or attributes.get("_compiled_call_impl")
    )


def has_backward_hooks(module: nn.Module) -> bool:
    """Say whether ``module`` itself has hooks for the backward. Checked on torch 2.4.1 and 2.15.0."""
    attributes = module.__dict__
    return bool(attributes["_backward_hooks"] or attributes["_backward_pre_hooks"])


def call_uncompiled(module: nn.Module) -> Callable[..., Any]:
    """Return what runs ``module``, as it was before ``module.compile()``.

    Checked on torch 2.4.1 and 2.15.0.
    """
    if is_compiled_in_place(module):
        uncompiled: Callable[..., Any] = module._call_impl
        return uncompiled
    return module


def is_compiled_function(value: Any) -> bool:
    """Say whether ``torch.compile``, or TorchScript, made the function ``value``.

    Checked on torch 2.4.1 and 2.15.0.
    """
    if type(value) is types.FunctionType:
        attributes = vars(value)
        # ``torch.compiler.disable`` leaves the same mark on what is not compiled.
        is_disabled = attributes.get("_torchdynamo_disable", False)
        return "_torchdynamo_orig_callable" in attributes and not is_disabled
    return is_a(value, torch.jit.ScriptFunction)


def take_out_modes(is_ours: Callable[[TorchFunctionMode], bool]) -> Callable[[], None]:
    """Take some torch-function modes off the stack of this thread; return what puts all back.

    Dynamo reads the stack, also where torch functions are switched off.
    Checked on torch 2.4.1 and 2.15.0.
    """
    before = _take_all()
    others = [mode for mode in before if not is_ours(mode)]
    _put_all(others)

    def put_back() -> None:
        _take_all()
        _put_all(before)

    return put_back


def _take_all() -> list[TorchFunctionMode]:
    count = torch._C._len_torch_function_stack()
    return [torch._C._pop_torch_function_stack() for _ in range(count)][::-1]


def _put_all(modes: Iterable[TorchFunctionMode]) -> None:
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def add_hooks(
    module: nn.Module,
    key: Any,
    before: Callable[..., Any] | None,
    after: Callable[..., Any],
) -> None:
    """Register a forward pre-hook that comes first, and a forward hook that comes last.

    ``before`` also gets keyword arguments; ``after`` is also called when the forward raises.
    Writes to the registries that ``register_forward_hook`` fills, for its handle costs ten times as
    much as the call of a hook. Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    if before is not None:
        module._forward_pre_hooks_with_kwargs[key] = True
        module._forward_pre_hooks[key] = before
        module._forward_pre_hooks.move_to_end(key, last=False)  # type: ignore[attr-defined]
    module._forward_hooks_always_called[key] = True
    module._forward_hooks[key] = after


def remove_hooks(module: nn.Module, key: Any, *, before: bool) -> None:
    """Undo :func:`add_hooks`, which had a hook ``before`` or not.

    Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    if before:
        module._forward_pre_hooks.pop(key, None)
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    module._forward_hooks.pop(key, None)
    module._forward_hooks_always_called.pop(key, None)


def is_failing(frame: types.FrameType) -> bool:
    """Say whether the call of a module, whose hooks ``frame`` or its caller runs, has raised.

    Then torch runs hooks that are always called where it handles the error, in the frame of the call.
    An error that the model handles elsewhere was not caught by that frame. Checked on torch 2.4.1 and
    2.15.0.
    """
    error = sys.exc_info()[1]
    caught = error.__traceback__ if error is not None else None
    return caught is not None and caught.tb_frame in (frame, frame.f_back)


def _nobody() -> None:
    return None


# What dynamo does with each frame that runs in this thread; ``None`` where it does nothing. It is there
# where compiled code has called something that is not compiled. Checked on torch 2.4.1 and 2.15.0.
dynamo_callback: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", _nobody
)


def run_by_dynamo(function: Callable[..., bool]) -> Callable[..., bool]:
    """Have dynamo call ``function`` while it traces, and take what it returns for a constant.

    ``torch.compiler.assume_constant_result`` does the same after seconds of importing.
    Checked on torch 2.6.0, 2.13.0 and 2.15.0.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def kept_from_dynamo(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """Have dynamo break the graph before ``function``, and not look at what is called from there.

    With ``fullgraph=True`` that is an error, which gives the reason since torch 2.7. Call this only
    where dynamo is there anyway. Checked on torch 2.4.1, 2.6.0, 2.8.0 and 2.15.0.
    """
    import torch._dynamo

    disable: Any = torch._dynamo.disable
    takes_reason = "reason" in inspect.signature(disable).parameters
    kept: Callable[..., Any] = disable(function, **({"reason": reason} if takes_reason else {}))
    return kept


def dynamo_follows_exceptions() -> bool:
    """Say whether dynamo traces ``raise`` and ``except`` of an exception class of ours.

    It does since torch 2.7; before, a compiled forward runs to its end. Call this only where dynamo
    is there anyway, for importing it takes seconds. Checked on torch 2.6.0, 2.8.0 and 2.15.0.
    """
    from torch._dynamo.variables import user_defined

    return hasattr(user_defined, "UserDefinedExceptionClassVariable")


def map_as_plain(kind: type, plain: Callable[[Any], Any]) -> None:
    """Have ``torch.utils._pytree`` go through ``plain(container)`` in the place of a container of ``kind``.

    Checked on torch 2.4.1 and 2.15.0.
    """
    torch.utils._pytree.register_pytree_node(
        kind, lambda container: ([plain(container)], None), lambda items, _: next(iter(items))
    )


def pop_mode(mode: TorchFunctionMode) -> bool:
    """Take ``mode`` off the stack of this thread, if it is on top; say whether it was.

    Checked on torch 2.4.1 and 2.15.0.
    """
    if not torch._C._len_torch_function_stack():
        return False
    top = torch._C._pop_torch_function_stack()
    if top is mode:
        return True
    torch._C._push_on_torch_function_stack(top)
    return False


def is_met_by_dynamo(error: Exception) -> bool:
    """Say whether dynamo failed where a function that it looked into came to code of this package.

    It says so in the text alone. Checked on torch 2.15.0.
    """
    text = str(error)
    return "from user code" in text and __package__ in text


def modes_are_on() -> bool:
    """Say whether some mode sees torch functions in this thread. Checked as :func:`pop_mode`."""
    return bool(torch._C._len_torch_function_stack())


# Puts a mode on the stack of this thread, at every call of a layer. Checked as :func:`pop_mode`.
push_mode: Callable[[TorchFunctionMode], None] = torch._C._push_on_torch_function_stack
