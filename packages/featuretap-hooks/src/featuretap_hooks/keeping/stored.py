"""What the modules of a model keep between forwards: buffers, caches, states, counters.

A feature in the memory of such a tensor would be changed by the next forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from featuretap._compat import no_torch_function, storage_id
from featuretap.inspecting.whose import is_of_torch
from featuretap.keeping.held import tensors_in

__all__ = ["Stored", "Weights"]


class Stored:
    """The tensors that modules keep, besides their parameters.

    Args:
        modules: whose they are.

    Attributes:
        storages: those that they are in.

    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._buffers = _registries(modules)
        self._known: list[int] | None = None
        self._attributes: dict[int, set[int]] = {}
        self._weights_move = False
        self.storages: set[int] = set()
        self.look_again(modules)

    @property
    def is_empty(self) -> bool:
        """Whether the modules keep nothing."""
        return not any(self._attributes.values())

    @property
    def is_settled(self) -> bool:
        """Whether no buffer can come that is not looked at: of torch's own modules none is handed out."""
        return not self._buffers

    def holds(self, tensor: torch.Tensor) -> bool:
        """Say whether ``tensor`` is in the memory of something that is kept, and may be written.

        Parameters are not, as long as no forward was seen to write one.
        """
        if not self.storages or (isinstance(tensor, nn.Parameter) and not self._weights_move):
            return False
        return storage_id(tensor) in self.storages

    def keeps(self, value: object) -> bool:
        """Say whether a module has ``value`` as an attribute: a configuration, say."""
        return any(value is held for module in self._modules for held in vars(module).values())

    def add_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let parameters count as well: a forward writes them."""
        self._weights_move = True
        with no_torch_function():
            self._attributes[id(self)] = {storage_id(parameter) for parameter in parameters}
        self._known = None
        self.follow_buffers()

    def follow_buffers(self) -> None:
        """Look at the buffers that the modules have now."""
        # Plain identities, for this is done in each forward; nothing is kept alive by them.
        ids = list(map(id, chain.from_iterable(map(dict.values, self._buffers))))
        if ids != self._known:
            buffers = chain.from_iterable(map(dict.values, self._buffers))
            found = {storage_id(buffer) for buffer in buffers if buffer is not None}
            self.storages = found.union(*self._attributes.values())
            self._known = ids

    def look_again(self, modules: Iterable[nn.Module]) -> None:
        """Look at all that ``modules`` hold now."""
        with no_torch_function():  # an outer extractor must not see this
            for module in modules:
                kept = {storage_id(tensor) for tensor in tensors_in(module)}
                self._attributes[id(module)] = kept
        self._buffers = _registries(self._modules)
        # With the buffers, what is no longer kept is forgotten.
        self._known = None
        self.follow_buffers()


def _registries(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return where buffers are registered that may be handed out, by modules that are not torch's."""
    found = (m._buffers for m in modules if not is_of_torch(type(m)))
    return [registry for registry in found if registry]


class Weights:
    """Whether one forward writes parameters.

    One that does so for a while, and puts them back at its end, must not end early.

    Args:
        parameters: of the model.

    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = parameters
        self._before = self._marks()

    @property
    def moved(self) -> bool:
        """Whether it happened since this was made."""
        return self._before != self._marks()

    def _marks(self) -> list[Any]:
        with no_torch_function():
            try:
                return list(map(_MARK, self._parameters))
            except RuntimeError:
                # Parameters made in inference mode count no versions, and nobody else writes them.
                return []


_MARK = attrgetter("_version", "dtype")
