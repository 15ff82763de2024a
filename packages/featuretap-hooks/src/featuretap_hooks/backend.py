"""The hooks backend, as the core finds it by its entry point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from featuretap import NodeNames, NodeNotFoundError
from featuretap.backends import MODES, Options, load_backend
from featuretap.extractor import FeatureExtractor
from featuretap.modules import LeafRule, ModuleTree
from featuretap.names.alignment import Alignment, warn_of_two_operations
from featuretap.naming import paths_above

from .example import Seen, watch_modes
from .extractor import HooksExtractor
from .findings import Findings
from .guessing import Guess, has_forward
from .parts import needed_part
from .plan import Plan
from .reaching import not_reached

__all__ = ["HooksBackend", "backend"]


class HooksBackend:
    """Serves every model, by watching its real forward."""

    def node_names(self, model: nn.Module, options: Options) -> NodeNames:
        """List the nodes of both modes; without example inputs, the modules."""
        if isinstance(model, FeatureExtractor):
            return load_backend("fx").node_names(model, options)
        if not options.has_example:
            tree = ModuleTree(model)
            guess = Guess(tree, options)
            names = [
                *guess.inputs,
                *(p for p in tree.paths if p and guess.find(p) and has_forward(tree.paths[p])),
            ]
            return NodeNames(names, names)
        names_of: dict[str, list[str]] = {}
        failures: dict[str, str] = {}
        for mode, seen in watch_modes(model, options).items():
            if isinstance(seen, Seen):
                names_of[mode] = list(seen.index.names)
            else:
                names_of[mode], failures[mode] = [], f"{type(seen).__name__}: {seen}"
        return NodeNames(names_of["train"], names_of["eval"], {}, failures)

    def extractor(
        self, model: nn.Module, requests: Mapping[str, Mapping[Any, str | None]], options: Options
    ) -> nn.Module:
        """Make an extractor of ``requests``."""
        if isinstance(model, FeatureExtractor):
            # What runs is generated code: where its operations are from, only the graph knows.
            if options.missing != "error" or not options.early_stop:
                raise ValueError(
                    "missing and early_stop are for forwards that are watched, and this model is an "
                    "extractor of fx, a graph that reaches all its nodes: make the extractor of the "
                    "model behind it, or leave them out"
                )
            return load_backend("fx").extractor(model, requests, options)
        plans = {mode: Plan(requests[mode]) for mode in MODES}
        part: dict[str, nn.Module | None] | None = None
        if options.has_example:
            part = self._resolve(model, plans, options)
        else:
            _guess(model, plans, options)
        return HooksExtractor(model, plans, options.without_example(), part=part)

    def _resolve(
        self, model: nn.Module, plans: Mapping[str, Plan], options: Options
    ) -> dict[str, nn.Module | None] | None:
        """Look the requests up in watched forwards; return the modules that these needed."""
        modes = watch_modes(model, options).items()
        found = {mode: seen for mode, seen in modes if isinstance(seen, Seen)}
        failed = {mode: plan for mode, plan in plans.items() if mode not in found}
        # In a mode that fails on the example there may be all nodes, also what nobody has heard of.
        with suppress(NodeNotFoundError):
            _guess(model, failed, options)
        same = plans["train"].request is plans["eval"].request
        ran: set[str] = set()
        # Nobody knows what runs in a mode that fails on the example, nor what a function uses that is one
        # node, or runs where nothing is one. A forward that goes to its end needs all.
        facts = Findings(ModuleTree(model), options)
        is_unseen = bool(failed or options.autowrap_functions or options.autowrap_modules)
        is_whole = is_unseen or facts.must_end or facts.own_code.switches
        for mode, seen in found.items():
            other = found.get("eval" if mode == "train" else "train")
            if seen.drew and other is not None:
                # LayerDrop: what was left out this time may run the next.
                seen.index.other = other.index
            seen.index.may_miss = options.missing == "skip"
            try:
                plans[mode].resolve(seen.index, mode, other.index if other else None)
            except NodeNotFoundError as error:
                if _is_unreached(model, error.name, found.values()):
                    raise not_reached(model, {error.name}, list(seen.index.names)) from None
                raise
            plans[mode].calls = seen.calls
            keys = plans[mode].keys or ()
            # Of what the example did not reach, nobody knows after what it runs.
            is_whole = is_whole or seen.calls.went_deeper or any(map(seen.index.misses, keys))
            ran |= seen.ran_before(keys)
            if seen.drew and other is not None:
                ran |= other.ran_before(keys)
        if same and len(found) == len(MODES) and not options.suppress_diff_warning:
            _warn_of_two_meanings(found, plans)
        if is_whole or not options.early_stop:
            return None
        return needed_part(model, ran, LeafRule(options.leaf_modules))


def _guess(model: nn.Module, plans: Mapping[str, Plan], options: Options) -> None:
    """Resolve what needs no forward, and check the rest as far as is possible without one."""
    if plans:
        guess = Guess(ModuleTree(model), options)
        for mode, plan in plans.items():
            plan.guess(guess, mode)


def _is_unreached(model: nn.Module, name: str, found: Iterable[Seen]) -> bool:
    """Say whether ``name`` is a module that no forward came to, and that is in no leaf."""
    tree = ModuleTree(model)
    if name not in tree.paths or not has_forward(tree.paths[name]):
        return False
    above = set(paths_above(name))
    indices = [seen.index for seen in found]
    # Of a module whose other methods run, the path is no node.
    recorded = [node for index in indices for node in (*index.names, *index.calls)]
    return not any(node == name or node.startswith(f"{name}.") for node in recorded) and not any(
        above & index.names.keys() for index in indices
    )


def _warn_of_two_meanings(found: Mapping[str, Seen], plans: Mapping[str, Plan]) -> None:
    """Warn, by name, where one name is another operation in train than in eval."""
    asked, seen = [plans[mode].keys or {} for mode in MODES], [found[mode] for mode in MODES]
    alignment = Alignment(*(forward.operations for forward in seen))
    for name in asked[0].keys() & asked[1].keys():
        is_operation = all(name in forward.index.names for forward in seen)
        if not is_operation or seen[0].is_module(name):
            continue
        if not alignment.agrees(name.rpartition(".")[0], name):
            warn_of_two_operations(name)


backend = HooksBackend()
