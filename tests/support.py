"""Comparing values, and a model with its former self."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def here() -> torch.device:
    """Return where tensors are made."""
    return torch.empty(0).device


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").to(here())


def with_forward(forward: Callable[..., Any], **parts: torch.Tensor | nn.Module) -> nn.Module:
    """Make a module of a function ``forward(self, ...)``, with these buffers and children."""
    model: nn.Module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            model.add_module(name, part)
        else:
            model.register_buffer(name, part)
    return model


def identical(a: Any, b: Any) -> bool:
    """Whether two values are the same bit for bit, and of the same kind."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return torch.equal(torch.nan_to_num(a.detach()), torch.nan_to_num(b.detach()))
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and identical(vars(a), vars(b))
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def copied(value: Any) -> Any:
    """A copy of ``value`` as it is now."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        items = [copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return type(value)((key, copied(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return type(value)(**{key: copied(item) for key, item in vars(value).items()})
    return value


def snapshot(model: nn.Module) -> list[Any]:
    """All that listing, creating and failing must leave alone, in comparable form."""
    found: list[Any] = []
    for path, module in model.named_modules():
        attributes = {name: (id(value), _content(value)) for name, value in vars(module).items()}
        found.append((path, id(module), module.training, attributes))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        about = (id(tensor), tensor._version, tensor.shape, tensor.requires_grad, tensor.is_leaf)
        gradient = tensor.grad if tensor.is_leaf else None
        content = [None if t is None else t.detach().flatten().tolist() for t in (tensor, gradient)]
        found.append((name, *about, id(gradient), *content))
    found.append(torch.get_rng_state().tolist())
    found.append(process_state())
    return found


def process_state() -> dict[Any, Any]:
    """What tracing and watching replace for a while."""
    owners = (nn.Module, torch.no_grad, torch.autocast, torch.autograd.Function, torch.random, math)
    state = {(repr(o), name): id(value) for o in owners for name, value in list(vars(o).items())}
    state |= {n: id(value) for n, value in list(vars(torch).items()) if n.startswith("is_")}
    return state | {
        "modes": torch._C._len_torch_function_stack(),
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.ones(1, 1) @ torch.ones(1, 1)).dtype,
    }


def _content(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (list, set)):
        return [id(item) for item in value]
    return None


def module_outputs(model: nn.Module, *args: Any) -> dict[tuple[str, int], Any]:
    """What each call of each module returned in one real forward, copied by hooks."""
    outputs: dict[tuple[str, int], Any] = {}
    calls: Counter[str] = Counter()

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[path, calls[path]] = copied(output)
            calls[path] += 1

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in model.named_modules()]
    try:
        model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
