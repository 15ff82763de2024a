"""Which values depend on the model's inputs or parameters; only what is made of these is a node."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from featuretap._compat import no_torch_function, storage_id
from featuretap.copying import tensors_of
from featuretap.naming import join

from .inspecting.instructions import spelled_out
from .tracked import Tracked

__all__ = ["Dependents"]

# Of these there is one object for each value, whichever tensor it is read of.
_ONE_FOR_ALL = (torch.dtype, torch.layout)


class Dependents:
    """The tensors of one forward that depend on inputs or parameters, by identity.

    Nothing is kept alive: an entry counts only while its tensor lives.

    Args:
        parameters: names of the model's parameters by id; these depend from the start.
        stored: the model's other tensors by id, which do not; they count while they live, too.
        storages: finds the tensors that the model holds, by the storage they are in.
        unknown_depend: only a part of the forward is seen, so that a tensor of unknown origin may
            depend on the inputs. It is taken to; ``foreign`` says, for a forward seen as a whole, where
            that would be wrong.

    Attributes:
        foreign: scopes that use an independent tensor which was made elsewhere, or one that the model
            keeps and that another scope wrote.

    """

    def __init__(
        self,
        parameters: Mapping[int, str],
        stored: Mapping[int, Callable[[], Any]],
        storages: Callable[[], dict[int, list[torch.Tensor]]],
        *,
        unknown_depend: bool,
    ) -> None:
        self.parameters = parameters
        self.foreign: set[str] = set()
        self._stored = stored
        # Kept, so that nothing else gets their place while this forward runs.
        self._exchanged: list[torch.Tensor] = []
        self._storages = storages
        self.unknown_depend = unknown_depend
        self._marked: dict[int, weakref.ref[torch.Tensor]] = {}
        self._independent: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
        # These and what the model holds, by storage, once something was written; what is not there yet.
        self._views: dict[int, list[weakref.ref[torch.Tensor]]] | None = None
        self._unplaced: list[weakref.ref[torch.Tensor]] = []
        # Tensors that the model keeps -> the scope that wrote what depends into them.
        self._writers: dict[int, str] = {}
        # What was written, and what is made of that alone -> the scope that did it.
        self._sized: dict[int, str] = {}
        # Fields of named tuples that were read, and how often, since they were used last.
        self._read: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._devices: dict[int, tuple[torch.device, Tracked]] = {}
        self._dtypes: dict[str, dict[torch.dtype | torch.layout, list[Tracked]]] = {}
        self._spelled_out: frozenset[Any] = frozenset()

    def enter(self, module: nn.Module, path: str) -> None:
        """Begin with a forward.

        Looks at what the module holds now, for ``torch.func.functional_call`` exchanges it, and
        forgets the dtypes that its last forward read: the same may have another source in this one.
        """
        self._dtypes.pop(path, None)
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in self.parameters:
                self.parameters = {**self.parameters, id(parameter): join(path, name)}
                self._exchanged.append(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and not self._is_stored(buffer):
                self._stored = {**self._stored, id(buffer): partial(module._buffers.get, name)}

    def _is_stored(self, tensor: torch.Tensor) -> bool:
        found = self._stored.get(id(tensor))
        return found is not None and found() is tensor

    def keeps(self, tensor: torch.Tensor) -> bool:
        """Say whether ``tensor`` is known to depend on nothing: a buffer, or a constant made here."""
        if id(tensor) in self.parameters or self.is_result(tensor):
            return False
        made, _ = self._independent.get(id(tensor), (None, None))
        return self._is_stored(tensor) or (made is not None and made() is tensor)

    def mark(self, value: Any) -> None:
        """Mark every tensor in ``value``."""
        if self._sized:
            for tensor in _tensors(value):
                self._sized.pop(id(tensor), None)
        if type(value) is torch.Tensor:
            self._marked[id(value)] = weakref.ref(value)
            return
        for tensor in _tensors(value):
            if id(tensor) not in self.parameters:
                self._marked[id(tensor)] = weakref.ref(tensor)

    def note_read(self, tensor: torch.Tensor) -> None:
        """Mark a field that was read, and becomes a node when it is used."""
        self.mark(tensor)
        _, times = self._read.get(id(tensor), (None, 0))
        self._read[id(tensor)] = (weakref.ref(tensor), times + 1)

    def is_read(self, value: Any) -> bool:
        """Say whether ``value`` is such a field, and nothing has used it yet."""
        if not self._read:
            return False
        tensor, _ = self._read.get(id(value), (None, 0))
        return tensor is not None and tensor() is value

    def note_used(self, tensor: torch.Tensor) -> None:
        """Note that a field that was read is a node now."""
        found, times = self._read.pop(id(tensor))
        if times > 1:
            self._read[id(tensor)] = (found, times - 1)

    def mark_written(self, value: Any, scope: str) -> None:
        """Mark every tensor in ``value``, into which ``scope`` has written, and what shares its memory."""
        written = [t for t in _tensors(value) if self.is_sized(t) or not self.is_marked(t, scope)]
        self.mark(value)
        others = self._views_of(written)
        self.mark(others)
        written += others
        self._writers.update((id(t), scope) for t in written if self._is_stored(t))
        self._sized.update((id(t), scope) for t in written)

    def _views_of(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what does not depend yet and is in the memory of one of ``tensors``."""
        if not tensors:
            return []
        with no_torch_function():
            if self._views is None:
                held = self._storages().items()
                self._views = {storage: list(map(weakref.ref, there)) for storage, there in held}
            for found in self._unplaced:
                view = found()
                if view is not None:
                    self._views.setdefault(storage_id(view), []).append(found)
            self._unplaced.clear()
            views = [view() for t in tensors for view in self._views.pop(storage_id(t), ())]
        known = {*self.parameters, *map(id, tensors)}
        return [view for view in views if view is not None and id(view) not in known]

    def mark_sized(self, value: Any, scope: str) -> None:
        """Mark every tensor in ``value``, which ``scope`` made of tensors whose sizes do not depend."""
        self.mark(value)
        self._sized.update((id(tensor), scope) for tensor in _tensors(value))

    def is_sized(self, value: Any) -> bool:
        """Say whether ``value`` is such a tensor."""
        return id(value) in self._sized and self.is_result(value)

    def are_sized(self, values: Any, scope: str) -> bool:
        """Say whether of all in ``values`` that depends, ``scope`` knows the sizes without the inputs.

        So it is of buffers and constants that the forward has written: ``torch.fx`` has them at hand.
        """
        sources = self.sources(values, scope, []) if self._sized else []
        if not sources or not all(map(self.is_sized, sources)):
            return False
        if any(self._sized[id(source)] != scope for source in sources):
            self.foreign.add(scope)
        return True

    def note_independent(self, value: Any, scope: str) -> None:
        """Note tensors that were made in ``scope`` of nothing that depends on the model's inputs."""
        for tensor in _tensors(value):
            made = weakref.ref(tensor)
            self._independent[id(tensor)] = (made, scope)
            self._unplaced.append(made)

    def remember(self, value: Any, source: Tracked, scope: str) -> None:
        """Remember a device, dtype or layout that the forward of ``scope`` read off a marked tensor.

        These cannot carry a mark. A device is told by identity, torch makes a new object at each read;
        the others by value, in this forward of the scope, where the code does not spell them out (see
        :meth:`tell_apart`). Where it was read of several tensors, what uses it is taken to use the last
        that nothing has used yet.
        """
        if isinstance(value, torch.device):
            self._devices[id(value)] = (value, source)
        elif isinstance(value, _ONE_FOR_ALL):
            self._dtypes.setdefault(scope, {}).setdefault(value, []).append(source)

    def tell_apart(self, values: Any, frame: types.FrameType, scope: str) -> None:
        """Note which dtypes among ``values``, given to an operation by ``frame``, were read nowhere."""
        self._spelled_out = frozenset()
        if scope in self._dtypes and any(isinstance(value, _ONE_FOR_ALL) for value in values):
            named = spelled_out(frame)
            self._spelled_out = frozenset(n for n in named if isinstance(n, _ONE_FOR_ALL))

    def forget(self) -> None:
        """Let go of what was remembered: the forward is over."""
        self._read.clear()
        self._devices.clear()
        self._dtypes.clear()

    def is_result(self, value: Any) -> bool:
        """Say whether ``value`` is a tensor that was marked, and nothing more."""
        key = id(value)
        found = self._marked.get(key)
        if found is None or found() is not value or key in self.parameters:
            return False
        return not self._read or not self.is_read(value)

    def is_settled_result(self, value: Any) -> bool:
        """Say the same where nothing was written into what the model keeps."""
        return not self._writers and self.is_result(value)

    def is_marked(self, tensor: torch.Tensor, scope: str) -> bool:
        """Say whether ``tensor``, which ``scope`` uses, depends on an input or a parameter."""
        key = id(tensor)
        if key in self.parameters:
            return True
        found = self._marked.get(key)
        if found is not None and found() is tensor:
            if self._writers and self._writers.get(key, scope) != scope:
                self.foreign.add(scope)
            return True
        if self._is_stored(tensor):
            return False
        made, maker = self._independent.get(key, (None, None))
        if made is None or made() is not tensor or maker != scope:
            self.foreign.add(scope)
            return self.unknown_depend
        return False

    def sources(self, value: Any, scope: str, found: list[Any]) -> list[Any]:
        """Append what ``value``, used in ``scope``, holds of tensors and tracked values that depend."""
        # A tracked value says that it is of the class that it stands for, so its type is asked first.
        if issubclass(type(value), Tracked):
            if value._origin.recorder.is_live:
                found.append(value)
        elif isinstance(value, torch.Tensor):
            if self.is_marked(value, scope):
                found.append(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self.sources(item, scope, found)
        elif isinstance(value, dict):
            for item in value.values():
                self.sources(item, scope, found)
        elif isinstance(value, slice):
            self.sources((value.start, value.stop, value.step), scope, found)
        elif isinstance(value, torch.device):
            if id(value) in self._devices:
                found.append(self._devices[id(value)][1])
        elif (
            isinstance(value, _ONE_FOR_ALL)
            and value in self._dtypes.get(scope, ())
            and value not in self._spelled_out
        ):
            reads = self._dtypes[scope][value]
            while len(reads) > 1 and not reads[-1]._origin.pending:
                reads.pop()
            found.append(reads[-1])
        return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif value is not None and type(value) not in (int, float, bool, str, *_ONE_FOR_ALL):
        yield from tensors_of(value)
