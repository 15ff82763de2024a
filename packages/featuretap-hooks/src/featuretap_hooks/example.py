"""Watch a whole forward on example inputs, and leave the model and the process as they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from featuretap._compat import storage_id
from featuretap.backends import MODES, Options
from featuretap.copying import copy_arguments
from featuretap.errors import fails_on_example
from featuretap.facts import written_arguments
from featuretap.inspecting.reading import forward_of
from featuretap.keeping.ambient import Ambient
from featuretap.keeping.apart import originals_refused, run_apart
from featuretap.keeping.gradients import Gradients
from featuretap.keeping.held import tensors_in
from featuretap.keeping.held_content import content_of_given
from featuretap.keeping.outside import tensors_outside
from featuretap.keeping.random_numbers import RandomState, foreign_random_state
from featuretap.keeping.recursion import more_recursion
from featuretap.keeping.replica import Replica
from featuretap.keeping.saved import SavedTensors, refuse_unmade
from featuretap.keeping.switching import switched_back
from featuretap.keeping.undisturbed import ONE_AT_A_TIME
from featuretap.keeping.untouched import Untouched
from featuretap.modules import ModuleTree, switch
from featuretap.names.alignment import Operations
from featuretap.naming import without_counter
from featuretap.signatures import positions_of, with_fixed

from ._compat import graph_target
from .calls.patching import unrecorded
from .findings import Findings
from .index import Index
from .scopes import Calls, Part
from .watching import watched_run

__all__ = ["Seen", "watch_apart", "watch_modes"]


class Seen:
    """What one watched forward showed.

    Attributes:
        index: the nodes.
        calls: which modules ran, when, and who called them.
        drew: whether the forward drew random numbers, so that the next may reach other nodes.

    """

    def __init__(self, tree: ModuleTree) -> None:
        self._parameters = tree.parameters
        self._paths = tree.paths
        self.index = Index(tree)
        self.calls = Calls(lambda: len(self.index))
        self.drew = False

    def ran_before(self, names: Iterable[str]) -> set[str]:
        """Return the modules that ran, or gave a parameter, up to the last of ``names``."""
        places = [point.position for point in map(self.index.find, names) if point]
        # Behind the last is what only the other mode reached.
        last = max((place for place in places if place < len(self.index)), default=-1)
        ran = {path for path, start in self.calls.started.items() if start <= last}
        for name, point in self.index.names.items():
            if name in self._parameters and point.position <= last:
                ran.add(name.rpartition(".")[0])
        return ran

    def is_module(self, name: str) -> bool:
        """Say whether ``name`` is the path of a module."""
        return name in self._paths

    @property
    def operations(self) -> Operations:
        """What the operations of each scope are like, by name."""
        found: dict[str, dict[str, Hashable]] = {}
        for name in self.index.names:
            likeness = without_counter(name), *self.calls.constants.get(name, ())
            found.setdefault(name.rpartition(".")[0], {})[name] = likeness
        return found


class _SaveWritten(TorchFunctionMode):
    """Saves tensors of the model before they are written."""

    def __init__(self, tree: ModuleTree, saved: SavedTensors) -> None:
        super().__init__()
        self._tree = tree
        self._saved = saved

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Save what ``func`` is about to write."""
        kwargs = kwargs or {}
        if func.__name__ == "__set__" and id(args[0]) in self._tree.tensor_names:
            self._saved.save(args[0])
        for written in written_arguments(graph_target(func), args, kwargs):
            if isinstance(written, torch.Tensor):
                for stored in self._tree.storages.get(storage_id(written), ()):
                    self._saved.save(stored)
        return func(*args, **kwargs)


def _watch_example(
    apart: Replica, found: Findings, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Seen:
    """Run the model of ``found`` on copies of the arguments, in the mode that it is in."""
    tree, model = found.tree, found.tree.model
    refuse_unmade(model)
    seen, saved = Seen(tree), SavedTensors()
    untouched = Untouched(model)
    for module in untouched.modules:
        for tensor in tensors_in(module):
            saved.save(tensor)
    for tensor in tensors_outside(map(forward_of, tree.paths.values())):
        saved.save(tensor)
    for parameter in tree.parameters.values():
        if parameter.is_leaf and parameter.grad is not None:
            saved.save(parameter.grad)
    random, (foreign, restore_foreign) = RandomState(), foreign_random_state()
    run = watched_run(found, Part.of(None, tree.paths, found.is_leaf), calls=seen.calls)
    # What is read off the code is read before somebody looks at each call.
    _ = found.places, found.own_code, found.storing
    with ExitStack() as stack:
        stack.callback(restore_foreign)
        stack.callback(random.restore)
        # After the tensors: one that an optimizer writes is saved with the gradient of the forward.
        stack.callback(Gradients(tree.parameters.values()).restore)
        stack.callback(saved.restore)
        stack.callback(untouched.restore)
        stack.callback(Ambient().restore)
        # Of these, an object without tensors is not copied.
        stack.callback(content_of_given((args, kwargs)).restore)
        stack.enter_context(_SaveWritten(tree, saved))
        stack.enter_context(originals_refused(apart))
        run(seen.index, *copy_arguments(args, kwargs))
        seen.drew = random.moved or foreign_random_state()[0] != foreign
    seen.calls.count = None
    return seen


def watch_apart(found: Findings, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Seen:
    """Do the same with a copy of the model, if a copy is safe: another thread may run the model."""
    model = found.tree.model

    def watch(apart: Replica) -> Seen:
        own = found
        if apart.model is not model:
            own = Findings(ModuleTree(apart.model), apart.options(found.options))
        return _watch_example(apart, own, args, kwargs)

    with ONE_AT_A_TIME, more_recursion(), unrecorded():
        return run_apart(watch, model)


def watch_modes(model: nn.Module, options: Options) -> dict[str, Seen | Exception]:
    """Watch the example of ``options`` in both modes; a mode that fails has its error instead.

    Raises:
        UntraceableModelError: if the model runs in neither mode.

    """
    refuse_unmade(model)
    with ONE_AT_A_TIME, more_recursion():
        return run_apart(partial(_watch_modes, options), model)


def _watch_modes(options: Options, apart: Replica) -> dict[str, Seen | Exception]:
    model, options = apart.model, apart.options(options)
    tree = ModuleTree(model)
    found = Findings(tree, options)
    args, kwargs = options.example
    positions = positions_of(tree.signature)
    args, kwargs = with_fixed(options.concrete_args, positions, args, kwargs)
    seen: dict[str, Seen | Exception] = {}
    untouched = Untouched(model)
    for mode in MODES:
        try:
            with switched_back(model, untouched):
                if model.training != (mode == "train"):
                    switch(model, mode == "train")
                seen[mode] = _watch_example(apart, found, args, kwargs)
        except Exception as error:
            seen[mode] = error
    failures = {mode: found for mode, found in seen.items() if isinstance(found, Exception)}
    if len(failures) == len(MODES):
        raise fails_on_example(failures) from failures[MODES[-1]]
    return seen
