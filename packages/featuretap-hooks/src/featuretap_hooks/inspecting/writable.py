"""The tensors that code of a model may write: those that it names, and those that it is given.

Parameters are not among them: see :class:`.Weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn

from featuretap._compat import no_torch_function
from featuretap.copying import tensors_of
from featuretap.inspecting.containers import copied, is_changed
from featuretap.inspecting.looking import is_a
from featuretap.keeping.held import attributes, is_opened

__all__ = ["GivenContainers", "TensorPlace", "Written", "named_places", "writable"]

# The attributes, or the buffers, of a module, and a name there.
TensorPlace: TypeAlias = tuple[dict[str, Any], str]


def named_places(modules: Iterable[nn.Module], names: frozenset[str]) -> list[TensorPlace]:
    """Return where ``modules`` keep tensors now, also in containers, under one of ``names``.

    One that comes later is seen as a change of what its module holds.
    """
    found: list[TensorPlace] = []
    for module in modules:
        kept = [(vars(module), dict(attributes(module)))]
        if isinstance(module._buffers, dict):  # TorchScript keeps its own behind a wrapper
            kept.append((module._buffers, module._buffers))
        found += [
            (owner, name)
            for owner, values in kept
            for name, value in values.items()
            if name in names and _holds_tensors(value)
        ]
    return found


def _holds_tensors(value: Any) -> bool:
    if is_a(value, torch.Tensor):
        return not is_a(value, nn.Parameter)
    return is_opened(value) and bool(tensors_of(value))


def writable(places: Iterable[TensorPlace], arguments: Any) -> dict[object, torch.Tensor]:
    """Return the tensors at these places and among ``arguments``, each under a key of its own."""
    found: dict[object, torch.Tensor] = {}
    values = ((id(owner), name, owner.get(name)) for owner, name in places)
    for owner, name, value in (*values, (0, "", arguments)):
        tensors = (value,) if type(value) is torch.Tensor else tensors_of(value)
        for number, tensor in enumerate(tensors):
            if not isinstance(tensor, nn.Parameter):
                found[owner, name, number] = tensor
    return found


class Written:
    """Which of some tensors were written since this was made, as their versions show."""

    def __init__(self, tensors: dict[object, torch.Tensor]) -> None:
        with no_torch_function():
            self._marks = [
                (key, tensor, tensor._version)
                for key, tensor in tensors.items()
                if not tensor.is_inference()
            ]

    def changes(self) -> Iterator[object]:
        """Yield the keys of those that were."""
        with no_torch_function():
            yield from (key for key, tensor, mark in self._marks if tensor._version != mark)


class GivenContainers:
    """The lists and dicts among arguments, which the caller of a forward has, too, as they are now."""

    def __init__(self, arguments: Any) -> None:
        self._contents = [(found, copied(found)) for found in _containers_in(arguments)]

    def changes(self) -> Iterator[object]:
        """Yield keys for those that hold something else."""
        for number, (found, content) in enumerate(self._contents):
            if is_changed(found, content):
                yield "argument", number


def _containers_in(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, dict)):
        yield value
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers_in(item)
