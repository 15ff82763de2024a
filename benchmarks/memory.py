"""How many bytes of tensors live at once while something runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the most bytes that tensors made by ``call`` held at one moment, its result included.

    On the CPU the storages are counted, operation by operation; on CUDA the allocator says it.
    """
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before: int = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        after: int = torch.cuda.max_memory_allocated()
        return after - before
    with _LiveStorages() as live:
        call()
    peak: int = live.peak  # the class is untyped to mypy, for its base is
    return peak


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations make, until the last tensor on each dies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and count what is new in its result."""
        kwargs = dict(kwargs or {})
        # Parameters and the input were there before; views of them are no new storage either.
        for tensor in _tensors_in((args, kwargs)):
            self._add(tensor, 0)
        result = func(*args, **kwargs)
        for tensor in _tensors_in(result):
            self._add(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _add(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self._now += size
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
