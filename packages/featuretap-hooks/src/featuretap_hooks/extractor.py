"""The module that runs the real forward of a model and returns the requested values."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from featuretap._compat import is_compiling
from featuretap.backends import Options
from featuretap.modules import ModuleTree, converts_itself
from featuretap.signatures import positions_of, with_fixed

from ._compat import dynamo_callback, is_jit_tracing
from .calls.signatures import with_signature
from .captures import Captures, Stop
from .compiling import (
    BrokenGraphError,
    Holder,
    problem_of,
    run_compiled,
    run_uncompiled,
)
from .findings import Findings
from .forwards import Forwards
from .plain_runs import may_run_again
from .plan import Plan
from .prepared import Prepared
from .reaching import not_reached

__all__ = ["HooksExtractor"]

_NOT_COMPILED = "torch.compile has left this forward to be run as it is"
# What a copy takes over as it is.
_KEPT_OPTIONS = ("early_stop", "missing", "leaf_modules", "concrete_args", "autowrap_functions")


class HooksExtractor(Forwards):
    """Runs ``model`` under watch. Made by :func:`featuretap_hooks.create_feature_extractor`.

    It passes for the model: ``isinstance`` sees the model's class, attributes and methods are the
    model's, and so are the keys of ``state_dict``.

    Args:
        model: the model, which stays as it is.
        plans: ``"train"`` and ``"eval"`` -> what to watch.
        options: what the user said.
        part: the modules, by name, that the parameters come from; ``None`` for all.

    """

    # What fx says of one.
    _not_traced = "an extractor of hooks watches a real forward, and a trace is none"

    def __init__(
        self,
        model: nn.Module,
        plans: Mapping[str, Plan],
        options: Options,
        *,
        part: dict[str, nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        state = vars(self)
        state["_model"], state["_plans"], state["_options"] = model, dict(plans), options
        state["_part"] = part
        state["_found"] = Findings(ModuleTree(model), options)
        concrete, positions = options.concrete_args, positions_of(self._found.tree.signature)
        # No container: ``torch.export`` opens those among the attributes.
        state["_complete"] = partial(with_fixed, concrete, positions) if concrete else None
        # The registries themselves are shared, so that ``to`` and ``half`` reach the model.
        state["_parameters"], state["_buffers"] = model._parameters, model._buffers
        state["_non_persistent_buffers_set"] = model._non_persistent_buffers_set
        state["_modules"] = model._modules if part is None else part
        state["_called_modules"] = model._modules
        state["_is_nested"] = any(
            type(m) is HooksExtractor for m in self._found.tree.paths.values()
        )
        state["forward"] = with_signature(HooksExtractor._forward, self, self._found.tree.signature)
        if converts_itself(model):
            state["_apply"] = self._convert_model
        state["_compiled_holder"] = Holder(self)
        self._prepare()

    # -- passing for the model --------------------------------------------------------------------

    @property
    def __class__(self) -> type:
        return type(vars(self).get("_model", self))

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError(
            f"the extractor cannot become a {kind.__name__}: change the model (fully_shard it, for "
            "example), and make the extractor of it then"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_model"], name)

    @property
    def training(self) -> bool:
        """The mode of the model."""
        return bool(self._model.training)

    @training.setter
    def training(self, mode: bool) -> None:
        model = vars(self).get("_model")
        if model is not None:
            model.training = mode

    def train(self, mode: bool = True) -> HooksExtractor:
        """Switch the model, and with it the extractor."""
        self._model.train(mode)
        return self

    def eval(self) -> HooksExtractor:
        """Do the same, by a method of the model's own if it has one."""
        self._model.eval()
        return self

    def _convert_model(self, *args: Any, **kwargs: Any) -> HooksExtractor:
        model: Any = self._model
        model._apply(*args, **kwargs)
        return self

    @property
    def return_nodes(self) -> dict[str, str]:
        """Node name -> output key in the mode that the model is in."""
        return dict(self._plan.names_to_keys)

    @property
    def _plan(self) -> Plan:
        plan: Plan = self._plans[self._mode]
        return plan

    # -- running --------------------------------------------------------------------------------

    def _forward(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Any]:
        """Call the model; take the arguments that its forward takes.

        Raises:
            NodeNotReachedError: if the forward did not reach a requested node.

        """
        if self._complete is not None:
            args, kwargs = self._complete(args, kwargs)
        if is_compiling():
            run = self._compiled if torch.compiler.is_dynamo_compiling() else self._exported
            return run(args, kwargs)
        if is_jit_tracing():
            return self._exported(args, kwargs)
        if dynamo_callback():
            # It would compile what watches, frame by frame.
            return run_uncompiled(self, _NOT_COMPILED, args, kwargs)
        return self._watched(args, kwargs)

    def _compiled(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        """Do the same in code that dynamo traces."""
        program = self._programs[self._mode]
        problem = problem_of(self, program)
        if problem:
            return run_uncompiled(self, problem, args, kwargs)
        try:
            values = run_compiled(self, program, args, kwargs)
        except BrokenGraphError:
            # Half of the forward has run for nothing: the whole may follow if that left nothing behind.
            mode = self._mode
            if not may_run_again(self._plans[mode], self._prepared[mode], self._found):
                raise
            return run_uncompiled(self, program.problem, args, kwargs)
        features = OrderedDict()
        for name, value in values.items():
            for key in program.keys[name]:
                features[key] = value
        return features

    def _exported(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        """Do the same for ``torch.export`` and ``torch.jit.trace``.

        For export, which keeps count of the modules that it enters and leaves, the forward goes to its
        end. Every value is copied: of values that are none nothing can be learned, and what looks at
        them would be traced.
        """
        plan = self._plan
        if plan.keys is None:
            raise RuntimeError(
                "torch.export and torch.jit.trace need to know which nodes globs and module types stand "
                "for: call the extractor once before, or pass example_args to create_feature_extractor"
            )
        keys = plan.keys
        stop = is_jit_tracing() is not None and self._may_stop(plan)
        captures = Captures(keys, set(keys), stop=stop, stored=self._found.stored)
        # As a whole: in frames of Python, export has proxies in the place of modules, which tell nobody
        # what part of the model an operation is in.
        prepared = Prepared(plan, self._found, whole=True, stop=stop)
        with suppress(Stop):
            self._watch(plan, prepared, captures, None, args, kwargs)
        if captures.missing and self._options.missing == "error":
            raise not_reached(self._model, captures.missing, captures.reached)
        return captures.features(keys)

    # -- copies -----------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> HooksExtractor:
        new = _rebuild(copy.deepcopy(self._state(), memo))
        memo[id(self)] = new
        return new

    def __copy__(self) -> HooksExtractor:
        plans = {mode: replace(plan) for mode, plan in self._plans.items()}
        return _rebuild({**self._state(), "_plans": plans})

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            "nn.DataParallel copies modules to each device, and an extractor of hooks watches one model: "
            "use DistributedDataParallel, or an extractor of fx (backend='fx')"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self._state(),)

    def _state(self) -> dict[str, Any]:
        state, options = vars(self), self._options
        return {
            **{name: state[name] for name in ("_model", "_plans", "_part")},
            **{name: getattr(options, name) for name in _KEPT_OPTIONS},
            "autowrap_modules": [module.__name__ for module in options.autowrap_modules],
        }


def _rebuild(state: dict[str, Any]) -> HooksExtractor:
    modules = tuple(map(importlib.import_module, state["autowrap_modules"]))
    kept = {name: state[name] for name in _KEPT_OPTIONS}
    options = Options(**kept, autowrap_modules=modules)
    for plan in state["_plans"].values():
        if plan.staying or plan.returning:
            plan.forget()  # these are of the modules that it was copied from
    return HooksExtractor(state["_model"], state["_plans"], options, part=state["_part"])
