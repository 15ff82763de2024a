"""The module that runs the real forward of a model and returns the requested values."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from featuretap import NodeNotReachedError
from featuretap.backends import Options
from featuretap.modules import ModuleTree

from ._compat import any_sharded, call_uncompiled, is_compiling, is_jit_tracing
from .captures import Captures, Stop
from .compiling import Holder, run_compiled, run_uncompiled
from .example import watch_example
from .fast_paths import fast_paths
from .findings import Findings
from .learning import learn
from .patching import active_recorder
from .plain_runs import is_plain, run_plain
from .plan import Plan
from .prepared import Prepared
from .put_back import PutBack
from .reaching import all_reached, not_reached
from .scopes import Calls, Part
from .signatures import with_signature
from .stored import Weights
from .switched import Switched
from .watching import run_watched, watch_modules

__all__ = ["HooksExtractor"]


class HooksExtractor(nn.Module):
    """Runs ``model`` under watch. Made by :func:`featuretap_hooks.create_feature_extractor`.

    It passes for the model: ``isinstance`` sees the model's class, attributes and methods are the
    model's, and so are the keys of ``state_dict``.

    Args:
        model: the model, which stays as it is.
        plans: ``"train"`` and ``"eval"`` -> what to watch.
        options: leaf modules and functions that are one node.
        early_stop: end the forward when every requested value is there.
        missing: ``"error"`` or ``"skip"``, for nodes that a forward did not reach.
        part: the modules, by name, that the parameters come from; ``None`` for all.

    """

    def __init__(
        self,
        model: nn.Module,
        plans: Mapping[str, Plan],
        options: Options,
        *,
        early_stop: bool = True,
        missing: str = "error",
        part: dict[str, nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        state = vars(self)
        state["_model"], state["_plans"], state["_options"] = model, dict(plans), options
        state["_early_stop"], state["_missing"], state["_part"] = early_stop, missing, part
        state["_found"] = Findings(ModuleTree(model), options)
        # The registries themselves are shared, so that ``to`` and ``half`` reach the model.
        state["_parameters"], state["_buffers"] = model._parameters, model._buffers
        state["_non_persistent_buffers_set"] = model._non_persistent_buffers_set
        state["_modules"] = model._modules if part is None else part
        state["_called_modules"] = model._modules
        state["_is_nested"] = any(
            type(m) is HooksExtractor for m in self._found.tree.paths.values()
        )
        state["forward"] = with_signature(HooksExtractor._forward, self, self._found.tree.signature)
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

    @property
    def return_nodes(self) -> dict[str, str]:
        """Node name -> output key in the mode that the model is in."""
        return dict(self._plan.names_to_keys)

    @property
    def _plan(self) -> Plan:
        plan: Plan = self._plans[self._mode]
        return plan

    @property
    def _mode(self) -> str:
        return "train" if self.training else "eval"

    # -- running --------------------------------------------------------------------------------

    def _forward(self, *args: Any, **kwargs: Any) -> OrderedDict[str, Any]:
        """Call the model; take the arguments that its forward takes.

        Raises:
            NodeNotReachedError: if the forward did not reach a requested node.

        """
        if is_compiling():
            run = self._compiled if torch.compiler.is_dynamo_compiling() else self._exported
            return run(args, kwargs)
        if is_jit_tracing():
            return self._exported(args, kwargs)
        return self._watched(args, kwargs)

    def _watched(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        # Another thread may switch the mode meanwhile.
        mode = self._mode
        if active_recorder() is not None:
            return self._run(mode, args, kwargs, lambda: self._found.storing)
        plan, prepared, grad = self._plans[mode], self._prepared[mode], torch.is_grad_enabled()
        if grad in plan.overwritten and is_plain(plan, prepared, self._found):
            return self._run_plain(plan, prepared, args, kwargs, grad=grad)
        with PutBack(plan, self._found) as before:
            return self._run(mode, args, kwargs, before.changed)

    def _run_plain(
        self, plan: Plan, prepared: Prepared, args: Any, kwargs: Any, *, grad: bool
    ) -> OrderedDict[str, Any]:
        keys, known, stored = plan.keys or {}, plan.overwritten[grad], self._found.stored
        stored.begin()
        captures = Captures(
            keys, known, stop=self._may_stop(plan), stored=stored, retained=plan.retained
        )
        try:
            run_plain(self._model, prepared.outputs, captures, args, kwargs)
        except Stop as stopped:
            if stopped.args != (captures,):
                raise
        except Exception:
            if not captures.ended:
                raise
        if captures.missing or captures.lost or not captures.unproven <= known:
            self._learn(plan, captures, (), args, kwargs, grad=grad, again=True)
        return captures.features(keys)

    def _learn(
        self,
        plan: Plan,
        captures: Captures,
        changed: Sequence[nn.Module],
        args: Any,
        kwargs: Any,
        *,
        grad: bool,
        again: bool,
    ) -> None:
        """Learn from a forward, and raise if a value is lost or was not reached."""
        lost = learn(plan, captures, self._found, changed, grad=grad)
        if captures.is_first:
            self._prepare()
        if lost:
            raise RuntimeError(
                f"this forward overwrote {lost} in place, which no forward before it did; the value is "
                "lost. Call the extractor again: from now on every value is copied"
            )
        outer = active_recorder()
        if outer is not None:
            outer.mark(captures.values)
        if captures.missing and self._missing == "error":
            raise self._not_reached(captures, args, kwargs, again=again)

    def _run(
        self, mode: str, args: Any, kwargs: Any, changed: Callable[[], Sequence[nn.Module]]
    ) -> OrderedDict[str, Any]:
        plan = self._plans[mode]
        if not self._prepared[mode].is_current:
            self._begin_anew()
        if plan.keys is None:
            seen = watch_example(self._model, self._found.tree, self._options, args, kwargs)
            plan.resolve(seen.index, mode)
            plan.calls = seen.calls
            self._prepare()
        prepared = self._prepared[mode]
        keys = plan.keys or {}
        grad = torch.is_grad_enabled()
        outer = active_recorder()
        # Inside another extractor's forward, whose recorder names everything, values are copied at once.
        known = plan.overwritten.get(grad) if outer is None else set(keys)
        stored = self._found.stored
        stored.begin()
        stop = self._may_stop(plan)
        switched = None
        if stop and known is None:
            switched = Switched(self._model, self._found.own_code.names, (args, kwargs))
        captures = Captures(
            keys,
            known,
            stop=stop,
            stored=stored,
            weights=self._weights(),
            retained=plan.retained,
            switched=switched,
        )
        calls = Calls() if plan.calls is None else None
        try:
            if outer is not None and outer.share(self, captures):
                self._follow(captures, args, kwargs)
            else:
                self._watch(plan, prepared, captures, calls, args, kwargs)
            self._take_parameters(captures)
        except Stop as stopped:
            if stopped.args != (captures,):
                raise
        except Exception:
            # The model swallowed the end, and stumbled over what was not there.
            if not captures.ended:
                raise
        if switched is not None:
            switched.look_again()
            plan.must_end |= switched.is_for_a_while
        if calls is not None and calls.started and not captures.missing:
            plan.calls = calls
            self._prepare()
        in_full = outer is not None or (prepared.part and prepared.part.scopes is None)
        self._learn(plan, captures, changed(), args, kwargs, grad=grad, again=not in_full)
        return captures.features(keys)

    def _weights(self) -> Weights | None:
        found = self._found
        return Weights(found.tree.parameters.values()) if found.own_code.writes_weights else None

    def _not_reached(
        self, captures: Captures, args: Any, kwargs: Any, *, again: bool
    ) -> NodeNotReachedError:
        reached: list[str] = []
        if again:
            reached = all_reached(self._model, self._found.tree, self._options, args, kwargs)
        return not_reached(self._model, captures.missing, reached or captures.reached)

    def _begin_anew(self) -> None:
        """Forget what was seen: a watched module is no longer the one at its path."""
        vars(self)["_found"] = Findings(ModuleTree(self._model), self._options)
        for plan in self._plans.values():
            plan.forget()
        self._prepare()

    def _compiled(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        """Do the same in code that dynamo traces."""
        program = self._programs[self._mode]
        if program.problem:
            uncompiled: OrderedDict[str, Any] = run_uncompiled(self, program.problem, args, kwargs)
            return uncompiled
        values = run_compiled(self, program, args, kwargs)
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
        stop = is_jit_tracing() and self._may_stop(plan)
        captures = Captures(keys, set(keys), stop=stop, stored=self._found.stored)
        with suppress(Stop):
            self._watch(plan, self._prepared[self._mode], captures, None, args, kwargs)
            self._take_parameters(captures)
        if captures.missing and self._missing == "error":
            raise not_reached(self._model, captures.missing, captures.reached)
        return captures.features(keys)

    def _prepare(self) -> None:
        prepared = {
            mode: Prepared(plan, self._found, whole=self._is_nested, stop=self._may_stop(plan))
            for mode, plan in self._plans.items()
        }
        vars(self)["_prepared"] = prepared
        vars(self)["_programs"] = {mode: found.program for mode, found in prepared.items()}

    def _watch(
        self,
        plan: Plan,
        prepared: Prepared,
        captures: Captures,
        calls: Calls | None,
        args: Any,
        kwargs: Any,
    ) -> None:
        if prepared.part is not None:
            self._record(prepared.part, captures, calls, args, kwargs)
            return
        if prepared.watch.inputs:
            self._take_inputs(captures, prepared.watch.inputs, args, kwargs)
        with watch_modules(prepared.outputs, captures.take, plan.nested, careful=captures.is_first):
            captures.take("", call_uncompiled(self._model)(*args, **kwargs))

    def _follow(self, captures: Captures, args: Any, kwargs: Any) -> None:
        """Run the model where another recorder hands over its nodes."""
        self._take_inputs(captures, self._found.inputs, args, kwargs)
        captures.node("", call_uncompiled(self._model)(*args, **kwargs))

    def _take_parameters(self, captures: Captures) -> None:
        for name in sorted(captures.missing & self._found.tree.parameters.keys()):
            captures.node(name, self._found.tree.parameters[name])

    def _take_inputs(
        self, captures: Captures, inputs: Mapping[str, str], args: Any, kwargs: Any
    ) -> None:
        bound = self._found.tree.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, argument in inputs.items():
            captures.take(name, bound.arguments.get(argument))

    def _record(
        self, part: Part, captures: Captures, calls: Calls | None, args: Any, kwargs: Any
    ) -> None:
        found = self._found
        layers = found.unwatched_layers if part.scopes is None else found.compiled_layers
        with fast_paths(layers):
            run_watched(found, captures, args, kwargs, part=part, calls=calls)

    def _may_stop(self, plan: Plan) -> bool:
        found = self._found
        if plan.must_end or not self._early_stop or found.own_code.switches:
            return False
        # Sharded modules gather and free their parameters around each forward, which must then end.
        return not any_sharded(found.tree.paths.values())

    # -- copies -----------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> HooksExtractor:
        new = _rebuild(copy.deepcopy(self._state(), memo))
        memo[id(self)] = new
        return new

    def __copy__(self) -> HooksExtractor:
        return _rebuild(self._state())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self._state(),)

    def _state(self) -> dict[str, Any]:
        state = vars(self)
        names = ("_model", "_plans", "_early_stop", "_missing", "_part")
        options = state["_options"]
        return {
            **{name: state[name] for name in names},
            "leaf_modules": options.leaf_modules,
            "autowrap_functions": options.autowrap_functions,
            "autowrap_modules": [module.__name__ for module in options.autowrap_modules],
        }


def _rebuild(state: dict[str, Any]) -> HooksExtractor:
    import importlib

    options = Options(
        leaf_modules=state["leaf_modules"],
        autowrap_functions=state["autowrap_functions"],
        autowrap_modules=tuple(map(importlib.import_module, state["autowrap_modules"])),
    )
    return HooksExtractor(
        state["_model"],
        state["_plans"],
        options,
        early_stop=state["_early_stop"],
        missing=state["_missing"],
        part=state["_part"],
    )
