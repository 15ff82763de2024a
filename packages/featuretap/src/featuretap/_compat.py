"""The private corners of torch that featuretap leans on, one small function each.

Each says on which torch versions it was checked, and what happens where the corner is missing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

__all__ = [
    "ASKS_FOR_USERS",
    "PARAMETER_MARKS",
    "SWAPS_TENSORS",
    "TREES",
    "TorchDispatchMode",
    "aten_schemas",
    "autocast_arguments",
    "autocast_state",
    "compiled_module",
    "contexts",
    "draws_random_numbers",
    "ends_recomputation",
    "function_of",
    "functions_wrapped_for_fx",
    "functorch_level",
    "hooks_of_every_module",
    "hooks_of_tensors",
    "is_bookkeeping_of_checkpoints",
    "is_compiled_in_place",
    "is_compiling",
    "is_erased",
    "is_random",
    "no_torch_function",
    "own_schemas",
    "preserve_version",
    "process_settings",
    "set_autocast_state",
    "settings_of_kernels",
    "storage_id",
    "torch_function_mode_enabled",
]


# What ``torch.utils`` documents only for those who extend torch.
# Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
TorchDispatchMode: type = torch.utils._python_dispatch.TorchDispatchMode


# What makes another tensor count as a ``torch.nn.Parameter`` or a ``torch.nn.Buffer`` for
# ``isinstance``. Checked on torch 2.0.1 and 2.15.0.
PARAMETER_MARKS = frozenset({"_is_param", "_is_buffer"})

# Modules of torch that ask for the type of what the user gave: of the items of containers, and of what
# ``scan`` and its like loop over. Checked on torch 2.0.1, which has no ``scan``, and 2.15.0.
ASKS_FOR_USERS = (torch.utils._pytree.__name__, "torch._higher_order_ops.")
# Where functions such as ``tree_map`` look ``type`` up, to know a container from a leaf. Checked as above.
TREES: dict[str, Any] = vars(torch.utils._pytree)


# A context manager that switches torch-function modes off in this thread.
# Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
no_torch_function: Callable[[], Any] = torch._C.DisableTorchFunction


# Whether this thread is in a torch-function mode. Checked on torch 2.0.1, 2.2.2, 2.4.1 and 2.15.0.
torch_function_mode_enabled: Callable[[], bool] = torch._C._is_torch_function_mode_enabled


def _never() -> bool:
    return False


# Dynamo knows it by identity; it moved in torch 2.3. Checked on torch 2.0.1, 2.2.2, 2.4.1 and 2.15.0.
is_compiling: Callable[[], bool] = (
    getattr(getattr(torch, "compiler", None), "is_compiling", None)
    or getattr(torch._utils, "is_compiling", None)
    or _never
)


@cache
def aten_schemas(name: str) -> Sequence[Any]:
    """Return the schemas of all overloads of ``aten::name``; empty if there is no such operator.

    A schema says which arguments an operator writes and which its results may alias.
    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    try:
        return tuple(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))
    except RuntimeError:
        return ()


def own_schemas(target: Any) -> Sequence[Any]:
    """Return the schemas of ``torch.ops.library.name`` or one of its overloads; else nothing.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    if isinstance(target, torch._ops.OpOverload):
        return (target._schema,)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return tuple(getattr(target, name)._schema for name in target.overloads())  # type: ignore[no-untyped-call]
    return ()


@cache
def draws_random_numbers(name: str) -> bool:
    """Say whether some overload of ``aten::name`` is tagged as drawing seeded random numbers.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(packet, overload).tags for overload in packet.overloads())


def is_random(operator: Any) -> bool:
    """Say whether an operator, one overload of it, draws seeded random numbers. Checked as above."""
    return torch.Tag.nondeterministic_seeded in operator.tags


def autocast_arguments(manager: torch.autocast) -> tuple[tuple[str, Any], ...]:
    """Return the arguments that make a context manager like ``manager``.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    return (
        ("device_type", manager.device),
        ("dtype", manager.fast_dtype),
        ("enabled", manager._enabled),
        ("cache_enabled", manager._cache_enabled),
    )


def autocast_state() -> tuple[Any, ...]:
    """Return whether autocast is on, and to which dtype, for the CPU and for CUDA.

    The functions take a device since torch 2.4. Checked on torch 2.0.1, 2.4.1 and 2.15.0.
    """
    if hasattr(torch, "get_autocast_dtype"):
        return tuple(
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        )
    return (
        (torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype()),
        (torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()),
    )


@cache
def process_settings() -> tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...]:
    """Return how kernels are chosen in this process: what reads each setting, and what sets it.

    Those of attention came with torch 2.2. Checked on torch 2.0.1 and 2.15.0.
    """
    found: list[Any] = [
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ]
    attention = getattr(torch.backends, "mha", None)
    if attention is not None:
        found.append((attention.get_fastpath_enabled, attention.set_fastpath_enabled))
    for name in ("enabled", "benchmark", "deterministic"):
        reads, sets = (getattr(torch._C, f"_{verb}_cudnn_{name}") for verb in ("get", "set"))
        found.append((reads, sets))
    return tuple(found)


def set_autocast_state(state: tuple[Any, ...]) -> None:
    """Set what :func:`autocast_state` returned. Checked on the same."""
    (cpu, cpu_dtype), (cuda, cuda_dtype) = state
    if hasattr(torch, "get_autocast_dtype"):
        for device, enabled, dtype in (("cpu", cpu, cpu_dtype), ("cuda", cuda, cuda_dtype)):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        return
    torch.set_autocast_cpu_enabled(cpu)
    torch.set_autocast_cpu_dtype(cpu_dtype)
    torch.set_autocast_enabled(cuda)
    torch.set_autocast_gpu_dtype(cuda_dtype)


def compiled_module(module: nn.Module) -> nn.Module | None:
    """Return the module that ``torch.compile(module)`` was given, if ``module`` is what it returned.

    Where dynamo is not imported there is nothing compiled.
    Checked on torch 2.0.1, 2.2.2, 2.6.0 and 2.15.0.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
        return None
    inner: nn.Module = module._orig_mod
    return inner


def hooks_of_every_module() -> tuple[dict[Any, Any], ...]:
    """Return the registries of hooks that run in the calls of all modules of the process.

    Checked on torch 2.0.1, 2.4.1 and 2.15.0.
    """
    every = torch.nn.modules.module
    return (
        every._global_forward_hooks,
        every._global_forward_pre_hooks,
        every._global_backward_hooks,
        every._global_backward_pre_hooks,
    )


def hooks_of_tensors(tensors: Sequence[torch.Tensor]) -> list[list[dict[int, Any] | None]]:
    """Return the registries of hooks that run when a tensor gets a gradient, by kind and tensor.

    One that was not made yet is ``None``. Checked on torch 2.0.1, which has the first kind alone, and
    2.15.0.
    """
    names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [list(map(attrgetter(n), tensors)) for n in names if hasattr(torch.Tensor, n)]


@cache
def settings_of_kernels() -> tuple[str, ...]:
    """Return the functions of ``torch._C`` that choose kernels or their precision, for the process.

    ``sdpa_kernel``, ``use_deterministic_algorithms``, ``backends.mkldnn.flags`` and their like come
    down to these. Checked on torch 2.0.1, 2.2.2, 2.6.0 and 2.15.0, which have eleven to all of them.
    """
    names = (
        "sdp_use_flash sdp_use_mem_efficient sdp_use_math sdp_use_cudnn sdp_use_overrideable "
        "sdp_priority_order cudnn_enabled cudnn_benchmark cudnn_deterministic cudnn_allow_tf32 "
        "cublas_allow_tf32 mkldnn_enabled deterministic_algorithms float32_matmul_precision"
    )
    return tuple(f"_set_{name}" for name in names.split() if hasattr(torch._C, f"_set_{name}"))


# What ``torch.utils.swap_tensors`` comes down to. Checked on torch 2.0.1, which has none, and 2.15.0.
SWAPS_TENSORS = tuple(name for name in ("_swap_tensor_impl",) if hasattr(torch._C, name))


def is_erased(node: fx.Node) -> bool:
    """Say whether ``node`` was taken out of its graph.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    return node._erased


def _level_of_interpreter() -> int | None:
    top = torch._C._functorch.peek_interpreter_stack()
    return None if top is None else top.level()


# The depth of the ``torch.func`` transform (vmap, grad) that this thread is in; ``None`` in none.
# It got a name in torch 2.3. Checked on torch 2.0.1, 2.2.2, 2.4.1 and 2.15.0.
functorch_level: Callable[[], int | None] = getattr(
    torch._C._functorch, "maybe_current_level", _level_of_interpreter
)


def storage_id(tensor: torch.Tensor) -> int:
    """Return a number that tensors share exactly if they share storage, also on the meta device.

    Tensors without a storage of their own (sparse, mkldnn) count as alone.
    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def functions_wrapped_for_fx() -> Iterator[tuple[dict[str, Any], str]]:
    """Yield namespace and name of each function that a library gave to ``torch.fx.wrap``.

    Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    from torch.fx import _symbolic_trace

    registered: Any = _symbolic_trace._wrapped_fns_to_patch
    if isinstance(registered, list):  # before torch 2.1
        yield from registered
        return
    for (_, name), namespace in list(registered.items()):
        yield namespace, name


def contexts() -> tuple[type, ...]:
    """Return the classes of what ``torch.autograd.Function.apply`` makes first, one a function.

    Checked on torch 2.0.1, 2.8.0 and 2.15.0.
    """
    return tuple(torch.autograd.function.BackwardCFunction.__subclasses__())


def function_of(context: type) -> type:
    """Return the ``torch.autograd.Function`` that a class of contexts was made for. Checked as above."""
    function: type = context._forward_cls  # type: ignore[attr-defined]
    return function


def is_bookkeeping_of_checkpoints(function: type) -> bool:
    """Say whether an autograd function only saves what a non-reentrant checkpoint was given.

    Without gradients in its result the checkpoint runs its function as it is. It is there from torch
    2.1 on; checked on torch 2.2.2 and 2.4.1, newer ones call it differently.
    """
    return (function.__module__, function.__name__) == ("torch.utils.checkpoint", "_NoopSaveInputs")


def is_compiled_in_place(module: nn.Module) -> bool:
    """Say whether ``module.compile()`` was called, so that its hooks are run by compiled code.

    Checked on torch 2.4.1 and 2.15.0.
    """
    return getattr(module, "_compiled_call_impl", None) is not None


def ends_recomputation(error: BaseException | None) -> bool:
    """Say whether a non-reentrant checkpoint stops what it runs again, for it has all that it needs.

    Checked on torch 2.0.1, 2.4.1 and 2.15.0.
    """
    kind = type(error)
    return (kind.__module__, kind.__name__) == (
        "torch.utils.checkpoint",
        "_StopRecomputationError",
    )


@contextlib.contextmanager
def preserve_version(tensor: torch.Tensor) -> Iterator[None]:
    """Write ``tensor`` without autograd counting it as a modification.

    Used only to put a value back where tracing changed it: for autograd nothing happened. Inference
    tensors count nothing. Checked on torch 2.0.1, 2.6.0, 2.13.0 and 2.15.0.
    """
    if tensor.is_inference():
        yield
        return
    guard: Any = torch.autograd._unsafe_preserve_version_counter  # type: ignore[attr-defined]
    with guard(tensor):
        yield
