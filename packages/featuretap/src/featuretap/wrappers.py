"""The model inside a wrapper: names, parameters and features are those of the model itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from . import _compat

__all__ = ["look_through"]

_HOLD_IT_AS_MODULE = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def look_through(model: Any) -> nn.Module:
    """Return the model that ``torch.compile``, ``DataParallel`` or DDP wrapped, or ``model`` itself.

    FSDP2 (``fully_shard``) wraps nothing: it changes the class of the model in place.

    Raises:
        TypeError: if ``model`` is no module.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    inner: Any = _compat.compiled_module(model)
    if inner is None and type(model) in _HOLD_IT_AS_MODULE:
        inner = model.module
    return model if inner is None else look_through(inner)
