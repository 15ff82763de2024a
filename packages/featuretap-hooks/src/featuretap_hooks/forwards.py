"""One forward of the model of an extractor, from the call to the features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from featuretap import NodeNotReachedError
from featuretap.backends import Options
from featuretap.keeping.saved import is_unmade
from featuretap.modules import ModuleTree

from ._compat import any_sharded, call_uncompiled
from .calls.patching import active_recorder
from .captures import Captures, Stop
from .compiling import BROKEN
from .example import watch_apart
from .findings import Findings
from .keeping.put_back import PutBack
from .keeping.stored import Weights
from .keeping.switched import Switched
from .learning import learn
from .lost_values import LostValueError, may_be_done_twice, versions_of
from .plain_runs import is_quiet, run_plain
from .plan import Plan
from .prepared import Prepared
from .program import Program
from .reaching import all_reached, not_reached
from .running import RUNNING, is_running, paused
from .scopes import Calls
from .watching import run_watched, watch_modules, watched_run

__all__ = ["Forwards"]


class Forwards(nn.Module):
    """What an extractor does when it is called, and what it learns from that."""

    _model: nn.Module
    _plans: dict[str, Plan]
    _prepared: dict[str, Prepared]
    _programs: dict[str, Program]
    _options: Options
    _found: Findings
    _is_nested: bool

    @property
    def _mode(self) -> str:
        return "train" if self.training else "eval"

    def _prepare(self) -> None:
        prepared = {
            mode: Prepared(
                plan, self._found, whole=self._is_nested, stop=self._may_stop_compiled(plan)
            )
            for mode, plan in self._plans.items()
        }
        for mode, plan in self._plans.items():
            prepared[mode].quiet_run = self._quiet_run(plan, prepared[mode])
        earlier = vars(self).get("_programs", {})
        vars(self)["_prepared"] = prepared
        vars(self)["_programs"] = {mode: found.program for mode, found in prepared.items()}
        for mode, program in earlier.items():
            if program.problem == BROKEN:
                self._programs[mode].problem = BROKEN

    def _quiet_run(self, plan: Plan, prepared: Prepared) -> Callable[..., None] | None:
        if prepared.part is not None:
            if plan.calls is None:
                return None
            # An extractor inside the model may want more than this one.
            return watched_run(self._found, prepared.part, watch_on=self._is_nested)
        if prepared.needs_outputs_alone and not plan.nested:
            return partial(run_plain, self._model, prepared.outputs)
        return None

    def _begin_anew(self) -> None:
        """Forget what was seen: a watched module is no longer the one at its path."""
        vars(self)["_found"] = Findings(ModuleTree(self._model), self._options)
        for plan in self._plans.values():
            plan.forget()
        self._prepare()

    def _watched(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        if RUNNING.forwards and is_running(self._model):
            with paused():
                return self._watched_alone(args, kwargs)
        return self._watched_alone(args, kwargs)

    def _watched_alone(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        """Do a forward; a value that it has overwritten unexpectedly is had from a second one."""
        versions = versions_of(*args, *kwargs.values())
        try:
            return self._watched_once(args, kwargs)
        except LostValueError:
            # What it has done to the model is put back, as after any failure; arguments are not.
            is_given_alike = versions is not None and versions == versions_of(
                *args, *kwargs.values()
            )
            if not (is_given_alike and may_be_done_twice(self._found)):
                raise
        return self._watched_once(args, kwargs)

    def _watched_once(self, args: Any, kwargs: Any) -> OrderedDict[str, Any]:
        # Another thread may switch the mode meanwhile.
        mode = "train" if self._model.training else "eval"
        plan, prepared, grad = self._plans[mode], self._prepared[mode], torch.is_grad_enabled()
        is_inside = active_recorder() is not None
        if not is_inside and grad in plan.overwritten and is_quiet(plan, prepared, self._found):
            return self._run_quiet(plan, prepared, args, kwargs, grad=grad)
        if not prepared.is_current:
            self._begin_anew()
        if is_inside:
            return self._run(mode, args, kwargs, None)
        may_end = self._may_stop(plan)
        with PutBack(plan, self._found, (args, kwargs), may_end=may_end) as before:
            return self._run(mode, args, kwargs, before)

    def _run_quiet(
        self, plan: Plan, prepared: Prepared, args: Any, kwargs: Any, *, grad: bool
    ) -> OrderedDict[str, Any]:
        """Do a forward of a model that only computes, and that was seen to do so."""
        keys, known = plan.keys or {}, plan.overwritten[grad]
        captures = Captures(
            keys,
            known,
            stop=self._may_stop(plan),
            stored=self._found.stored,
            retained=plan.retained,
        )
        run = partial(self._follow_quietly, prepared, captures)
        _to_its_end(self._model, captures, run, args, kwargs)
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
        outer = active_recorder()
        is_inside = outer is not None
        lost = learn(plan, captures, self._found, changed, grad=grad, is_inside=is_inside)
        if captures.is_first:
            self._prepare()
        if lost:
            raise LostValueError(
                f"this forward overwrote {lost} in place, which no forward before it did; the value is "
                "lost, and the forward may do more than compute, so it is not run again by itself. Call "
                "the extractor again: from now on every value is copied"
            )
        if outer is not None:
            outer.mark(captures.values)
        if captures.missing and self._options.missing == "error":
            raise self._not_reached(captures, args, kwargs, again=again)

    def _run(
        self, mode: str, args: Any, kwargs: Any, before: PutBack | None
    ) -> OrderedDict[str, Any]:
        """Do a forward; ``before`` is what the model was, if anybody has looked."""
        plan = self._plans[mode]
        if plan.keys is None:
            seen = watch_apart(self._found, args, kwargs)
            plan.resolve(seen.index, mode)
            plan.calls = seen.calls
            self._prepare()
        prepared = self._prepared[mode]
        grad = torch.is_grad_enabled()
        outer = active_recorder()
        # Inside another extractor's forward, whose recorder names everything, values are copied at once.
        known = plan.overwritten.get(grad) if outer is None else set(plan.keys or {})
        captures, switched = self._begin(plan, known, (args, kwargs), before)
        calls = Calls() if plan.calls is None else None
        if outer is not None and outer.share(self, captures):
            run: Callable[..., None] = partial(self._follow, captures)
        else:
            run = partial(self._watch, plan, prepared, captures, calls)
        _to_its_end(self._model, captures, run, args, kwargs)
        if switched is not None:
            self._see_what_switched(plan, switched, before)
        elif captures.ended and before is not None and plan.returning:
            before.turn_back()
        if calls is not None and calls.started and not captures.missing:
            plan.calls = calls
            self._prepare()
        in_full = outer is not None or (prepared.part and prepared.part.scopes is None)
        changed = before.changed() if before is not None else self._found.storing
        self._learn(plan, captures, changed, args, kwargs, grad=grad, again=not in_full)
        return captures.features(plan.keys or {})

    def _begin(
        self, plan: Plan, known: set[str] | None, arguments: Any, before: PutBack | None
    ) -> tuple[Captures, Switched | None]:
        """Return what takes the values, and what compares the model if this forward is the first.

        Args:
            plan: of the mode.
            known: the nodes that are overwritten, if forwards have shown it.
            arguments: of the forward.
            before: what the model was, if anybody has looked.

        """
        found = self._found
        # A lazy module makes parameters in the first forward, which cannot be looked at before.
        is_unready = known is None and any(map(is_unmade, found.tree.parameters.values()))
        is_looked_at = before is not None or found.computes_alone
        stop = self._may_stop(plan) and is_looked_at and not is_unready
        switched = Switched(found, arguments) if stop and known is None else None
        captures = Captures(
            plan.keys or {},
            known,
            stop=stop,
            stored=found.stored,
            weights=self._weights(),
            retained=plan.retained,
            switched=switched or before,
        )
        return captures, switched

    def _see_what_switched(self, plan: Plan, switched: Switched, before: PutBack | None) -> None:
        switched.look_again()
        own = self._found.own_code
        if own.switches and before is not None and switched.returning:
            plan.returning |= switched.returning
        else:
            plan.must_end |= switched.is_for_a_while
        if not own.switches:
            plan.staying |= switched.staying

    def _weights(self) -> Weights | None:
        found = self._found
        return Weights(found.tree.parameters.values()) if found.own_code.writes_weights else None

    def _not_reached(
        self, captures: Captures, args: Any, kwargs: Any, *, again: bool
    ) -> NodeNotReachedError:
        reached: list[str] = []
        if again:
            reached = all_reached(self._found, args, kwargs)
        return not_reached(self._model, captures.missing, reached or captures.reached)

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
            run_watched(self._found, captures, args, kwargs, part=prepared.part, calls=calls)
        else:
            if prepared.watch.inputs:
                self._take_inputs(captures, prepared.watch.inputs, args, kwargs)
            careful = captures.is_first
            with watch_modules(prepared.outputs, captures.take, plan.nested, careful=careful):
                captures.take("", call_uncompiled(self._model)(*args, **kwargs))
        self._take_parameters(captures)

    def _follow_quietly(
        self, prepared: Prepared, captures: Captures, args: Any, kwargs: Any
    ) -> None:
        assert prepared.quiet_run is not None
        prepared.quiet_run(captures, args, kwargs)
        if captures.missing:
            self._take_parameters(captures)

    def _follow(self, captures: Captures, args: Any, kwargs: Any) -> None:
        """Run the model where another recorder hands over its nodes."""
        self._take_inputs(captures, self._found.inputs, args, kwargs)
        captures.node("", call_uncompiled(self._model)(*args, **kwargs))
        self._take_parameters(captures)

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

    def _may_stop_compiled(self, plan: Plan) -> bool:
        # Compiled code compares nothing.
        return self._may_stop(plan) and not self._found.own_code.switches

    def _may_stop(self, plan: Plan) -> bool:
        found = self._found
        if plan.must_end or found.must_end or not self._options.early_stop:
            return False
        # Sharded modules gather and free their parameters around each forward, which must then end.
        return not any_sharded(found.tree.paths.values())


def _to_its_end(model: nn.Module, captures: Captures, run: Callable[..., None], *args: Any) -> None:
    """Run a forward of ``model``, which ends where the last requested value is there."""
    RUNNING.forwards.append((model, captures))
    try:
        run(*args)
    except Stop as stopped:
        if stopped.args != (captures,):
            raise
    except Exception:
        # The model swallowed the end, and stumbled over what was not there.
        if not captures.ended:
            raise
    finally:
        RUNNING.forwards.pop()
