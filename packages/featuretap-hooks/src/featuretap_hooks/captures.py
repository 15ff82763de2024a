"""Keeps the requested values of one forward, as they were when they were computed.

A kept tensor is copied where the model overwrites it afterwards, and only there. Nothing says
beforehand where that is. So the first forward keeps a copy beside each tensor, compares at the end,
and returns the copy only where the two differ: whatever wrote the tensor, be it NumPy, is found. Later
forwards copy at once what was overwritten then, and look at torch's version counters for the rest.

A tensor that the model keeps beyond its forward (a buffer, a cache) is copied in any case: the next
forward may write it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from featuretap._compat import functorch_level, no_torch_function
from featuretap.comparing import identical
from featuretap.copying import clone_or_detach, map_tensors, tensors_of
from featuretap.keeping.saved import version_of

from .going_on import Maker, is_only_name
from .keeping.stored import Stored, Weights
from .tracked import plain

__all__ = ["Captures", "Stop"]


class Stop(BaseException):
    """Everything is there. No ``Exception``, so that no ``except Exception`` of a model swallows it."""


class MayEnd(Protocol):
    """Knows whether a forward has switched something over that it must see to."""

    def may_end(self) -> bool:
        """Say whether everything is as it was."""


class Captures:
    """Takes the nodes of a forward and keeps the wanted ones.

    Args:
        wanted: names, as a recorder gives them.
        overwritten: names known to be overwritten; ``None`` if that is still to be learned.
        stop: whether to end the forward when all wanted values are there.
        stored: what the model keeps.
        weights: whether the forward writes parameters; it then goes to its end.
        retained: names known to be kept by the model beyond its forward.
        switched: knows whether the forward may end; ``None`` where that is known of the model.

    Attributes:
        missing: wanted names that have not come.
        reached: the names that came, wanted or not.
        values: the kept values by name, in the order in which they came.
        copied: names of which something was overwritten in the first forward.
        unproven: the name that ended the forward, so that nobody knows what would have written it.
        exposed: whether the forward came to the memory of a tensor, where writes are not seen.
        ended: whether the forward was ended.
        stops: whether the forward is ended when all wanted values are there.
        level: how deep the forward is in transforms of torch.func.
        kept: name, tensor and version of each value that must not be written any more.
        when_complete: told when every wanted value is there and the forward goes on.

    """

    def __init__(
        self,
        wanted: Collection[str],
        overwritten: Collection[str] | None,
        *,
        stop: bool,
        stored: Stored,
        weights: Weights | None = None,
        retained: Collection[str] = (),
        switched: MayEnd | None = None,
    ) -> None:
        self.missing = set(wanted)
        self.reached: list[str] = []
        self.overwritten = overwritten
        self.stops = stop
        self.stored = stored
        self._has_looked = False
        self._weights = weights
        self.retained = retained
        self._switched = switched
        self.ended = False
        self.when_complete: Callable[[], None] | None = None
        self._held: set[str] = set()
        # A tensor that lives inside of a deeper transform of torch.func is dead outside of it.
        self.level = functorch_level()
        self.exposed = False
        self.values: dict[str, Any] = {}
        self.copied: set[str] = set()
        self.unproven: set[str] = set()
        self.kept: list[tuple[str, torch.Tensor, int]] = []
        self._beside: list[tuple[str, torch.Tensor, torch.Tensor, int]] = []

    @property
    def is_first(self) -> bool:
        """Whether it is still unknown what the model overwrites."""
        return self.overwritten is None

    @property
    def weights_moved(self) -> bool:
        """Whether the forward has written parameters until now."""
        return self._weights is not None and self._weights.moved

    def features(self, keys: Mapping[str, list[str]]) -> OrderedDict[str, Any]:
        """Return the kept values by their output keys."""
        features = OrderedDict()
        for name, value in self.values.items():
            for key in keys[name]:
                features[key] = value
        return features

    def node(self, name: str, value: Any, maker: Maker = None) -> torch.Tensor | None:
        """Keep ``value`` if it is wanted; return what the forward may go on with instead."""
        self.reached.append(name)
        return self.take(name, value, maker) if name in self.missing else None

    def call(self, name: str, value: Any, module: nn.Module) -> None:
        """Keep ``value`` if it is wanted."""
        self.node(name, value)

    def take(self, name: str, value: Any, maker: Maker = None) -> torch.Tensor | None:
        """Keep ``value`` if it is wanted and the first of its name; end the forward if it was the last.

        Args:
            name: of the node.
            value: its value.
            maker: what made it, if it may be exchanged.

        Returns:
            A copy that the forward must go on with, if the value itself is the feature.

        """
        if name not in self.missing or functorch_level() != self.level:
            return None
        self.missing.discard(name)
        if not self.missing and self.stops and self._may_end():
            self.ended = True
            # Nothing runs any more that could write it, this time.
            self.values[name] = self._last(name, plain(value))
            self.unproven.add(name)
            raise Stop(self)
        changed = None
        with no_torch_function():  # an outer extractor must not see our copies
            if type(value) is torch.Tensor:
                changed = self._take_tensor(name, value, maker)
            else:
                keep = partial(self._keep, name)
                self.values[name] = map_tensors(plain(value), keep, is_kept=self.stored.keeps)
        if not self.missing and self.when_complete is not None:
            self.when_complete()
        return changed

    def _may_end(self) -> bool:
        return not self.weights_moved and (self._switched is None or self._switched.may_end())

    def expose(self) -> None:
        """Copy now what was not copied, and all that comes: writes may come that no version shows."""
        if self.exposed:
            return
        self.exposed = True
        lost = self.lost
        self._copy({name for name, _, _ in self.kept} - lost)
        self.kept = [kept for kept in self.kept if kept[0] in lost]

    def _copy(self, names: Iterable[str]) -> None:
        with no_torch_function():
            for name in names:
                self.values[name] = map_tensors(self.values[name], _copy_of)

    def _last(self, name: str, value: Any) -> Any:
        with no_torch_function():
            if name not in self.retained and not self._holds(value):
                return value
            self._held.add(name)
            return map_tensors(value, _copy_of)

    def _holds(self, value: Any) -> bool:
        """Say whether a tensor in ``value`` is in the memory of one that the model keeps."""
        if type(value) is torch.Tensor:
            return self._is_stored(value)
        return any(map(self._is_stored, tensors_of(value)))

    def _is_stored(self, tensor: torch.Tensor) -> bool:
        if not self._has_looked:
            self._has_looked = True
            self.stored.follow_buffers()
        return self.stored.holds(tensor)

    def _take_tensor(self, name: str, tensor: torch.Tensor, maker: Maker) -> torch.Tensor | None:
        may_be_written = self.overwritten is None or name in self.overwritten
        if not (may_be_written and tensor.requires_grad and is_only_name(tensor, maker)):
            self.values[name] = self._keep(name, tensor)
            return None
        self.values[name] = tensor
        copy = _copy_of(tensor)
        if self.overwritten is None:
            self._beside.append((name, copy, tensor, copy._version))
        return copy

    def _keep(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.overwritten is None:
            self._beside.append((name, tensor, _copy_of(tensor), version_of(tensor)))
            return tensor
        if (
            self.exposed
            or name in self.overwritten
            or tensor.is_inference()
            or name in self.retained
            or self._is_stored(tensor)
        ):
            # Inference tensors have no version counter that would tell.
            return _copy_of(tensor)
        self.kept.append((name, tensor, tensor._version))
        return tensor

    def compare(self) -> None:
        """After the first forward: put copies in the place of tensors that were overwritten."""
        if not self._beside:
            return
        with no_torch_function():
            for name, tensor, copy, version in self._beside:
                is_same = version_of(tensor) == version and _is_same(tensor, copy)
                # ``detach_`` takes the gradient from a tensor, and counts no version.
                if not is_same or tensor.requires_grad != copy.requires_grad:
                    self.copied.add(name)
                    if self._is_stored(tensor):
                        self._held.add(name)
                    self.values[name] = map_tensors(self.values[name], _exchange(tensor, copy))
                elif self.values[name] is copy:
                    # The forward went on with the other, and may have put a hook on it.
                    self.values[name] = tensor

    def let_go(self) -> set[str]:
        """After a forward: copy what the model still holds; return the names, and those copied before."""
        with no_torch_function():
            held = {name for name, value in self.values.items() if self._holds(value)}
        self._copy(held)
        return held | self._held

    @property
    def lost(self) -> set[str]:
        """Names whose tensors were overwritten without having been copied."""
        if not self.kept:
            return set()
        with no_torch_function():
            return {name for name, tensor, version in self.kept if tensor._version != version}


def _copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor with its gradient, also where the forward has switched gradients off."""
    if not tensor.requires_grad or torch.is_grad_enabled():
        return clone_or_detach(tensor)
    with torch.enable_grad():
        return clone_or_detach(tensor)


def _exchange(tensor: torch.Tensor, copy: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda found: copy if found is tensor else found


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        return not a.is_meta and identical(a, b)
    except (RuntimeError, NotImplementedError):
        # No values to compare, inside of torch.func transforms.
        return False
