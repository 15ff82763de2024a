"""Proof on the user's own input: an extractor beside the real forward."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .backends import MODES, Options, available_backends, load_backend
from .comparing import describe, identical, largest_difference
from .copying import copy_arguments, copy_value
from .errors import NodeNotFoundError, UntraceableModelError, fails_on_example
from .keeping.apart import originals_refused, run_apart
from .keeping.recursion import more_recursion
from .keeping.replica import Replica
from .keeping.saved import refuse_unmade
from .keeping.undisturbed import ONE_AT_A_TIME, undisturbed
from .modules import ModuleTree, switch
from .names.named_otherwise import is_named_otherwise
from .naming import without_counter
from .reports import Check, Report, by
from .signatures import positions_of, signature_of, with_fixed
from .wrappers import look_through

__all__ = ["prove", "verify"]


def verify(extractor: nn.Module, model: nn.Module, /, *args: Any, **kwargs: Any) -> Report:
    """Compare every feature of ``extractor`` with the real forward of ``model``, bit for bit.

    Both run on copies of the same arguments, from the same random state, in the mode that the extractor
    is in; copies of them, which share the parameters, where a copy is sure to be the same. Afterwards
    model, extractor and random state are as they were. With featuretap-hooks
    installed every node is seen; without it the outputs of modules are, and the rest is marked ``-``.

    Args:
        extractor: made by ``create_feature_extractor``.
        model: the model it was made of.
        *args: positional arguments of the forward.
        **kwargs: keyword arguments of the forward.

    Returns:
        A report; ``print`` it, look at ``report.equal``, or call ``report.raise_if_different()``.

    Raises:
        TypeError: if ``extractor`` is none.
        ValueError: if a lazy module has not made its parameters yet.
        Exception: whatever the forward of ``model`` raises on these arguments.

    Example:
        >>> import torch, featuretap
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True)).eval()
        >>> extractor = featuretap.create_feature_extractor(model, ["0", "1"], backend="fx")
        >>> print(featuretap.verify(extractor, model, torch.ones(2, 4)))
        node  equal  largest difference
        -------------------------------
        0     yes    0
        1     yes    0

    """
    if not isinstance(extractor, nn.Module) or not hasattr(extractor, "return_nodes"):
        raise TypeError(
            f"{type(extractor).__name__} is no extractor: pass what create_feature_extractor returned, "
            "then the model that it was made of, then the arguments of a call"
        )
    options = vars(extractor).get("_options") or Options()
    model = look_through(model)
    refuse_unmade(model)

    def compare(apart: Replica) -> Report:
        example = _Example(apart, args, kwargs, options)
        return example.compare(apart.others[0])

    with ONE_AT_A_TIME, more_recursion():
        return run_apart(compare, model, extractor)


class _Example:
    """A model and the arguments of a call of it, beside which what is made of the model can be run.

    Args:
        apart: the model, or a copy of it.
        args: positional arguments of its forward.
        kwargs: keyword arguments of it, without those that are fixed.
        options: what the user said of the model.

    """

    def __init__(
        self, apart: Replica, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options
    ) -> None:
        model, options = apart.model, apart.options(options)
        if options.concrete_args:
            positions = positions_of(signature_of(model))
            args, kwargs = with_fixed(options.concrete_args, positions, args, kwargs)
        self._model, self._args, self._kwargs = model, args, kwargs
        self._options = options
        self._apart = apart

    def compare(self, extractor: nn.Module) -> Report:
        """Compare as :func:`verify` does.

        Raises:
            Exception: whatever the model's own forward raises.

        """
        names_to_keys: dict[str, str] = dict(extractor.return_nodes)  # type: ignore[arg-type]
        watched, seen = self._watched(list(names_to_keys))
        real = self._run(watched, extractor)
        try:
            features = self._run(extractor, extractor)
            # The same value may be under several keys, and modules inside of others end before these.
            order = {key: place for place, key in enumerate(features)}
            came = sorted(names_to_keys.items(), key=lambda pair: order.get(pair[1], 0))
            modules = ModuleTree(self._model).reserved
            checks = [
                _check(name, features[key], real, seen, _is_memory(name, modules))
                for name, key in came
            ]
        except Exception as error:
            note = f"the extractor raises {type(error).__name__}: {error}"
            checks = [Check(name, False, None, note) for name in names_to_keys]
        if any(check.equal is False for check in checks):
            # A forward that does not repeat itself, as some kernels on GPUs, proves nothing.
            again = self._run(self._watched(list(names_to_keys))[0], extractor)
            checks = [
                Check(check.node, None, note="the model's own forward does not repeat this value")
                if not identical(real.get(check.node), again.get(check.node))
                else check
                for check in checks
            ]
        return Report(checks, "train" if extractor.training else "eval")

    def is_named_otherwise(self, everything: nn.Module) -> bool:
        """Say whether an extractor of every node differs from the real forward in names alone."""
        if "hooks" not in available_backends():
            return False
        shown = replace(self._options, suppress_diff_warning=True)
        try:
            found = load_backend("hooks").node_names(self._model, shown)
            watched = self._hooked(found.train if everything.training else found.eval)
            recorded: Mapping[str, str] = everything.return_nodes  # type: ignore[assignment]
            keys = {key: name for name, key in recorded.items()}
            features = {
                keys[key]: value for key, value in self._run(everything, everything).items()
            }
            return is_named_otherwise(features, self._run(watched, everything))
        except Exception:  # it fails, which the comparison says
            return False

    def _run(self, call: Callable[..., Any], extractor: nn.Module) -> dict[str, Any]:
        """Call something in the mode of ``extractor``, and leave all as it was."""
        given = self._args, self._kwargs
        with undisturbed(self._model, extractor, given=given):
            if self._model.training != extractor.training:
                switch(self._model, bool(extractor.training))
            args, kwargs = copy_arguments(self._args, self._kwargs)
            with originals_refused(self._apart):
                values = call(*args, **kwargs)
            # Copied, for a feature may be a buffer, which is put back now.
            return {key: copy_value(value) for key, value in values.items()}

    def _watched(self, names: list[str]) -> tuple[Callable[..., dict[str, Any]], set[str]]:
        """Return what gives the real values of ``names``, and those that it must see."""
        while names and "hooks" in available_backends():
            try:
                return self._hooked(names), set(names)
            except NodeNotFoundError as error:
                names.remove(error.name)
        return partial(_module_outputs, self._model, names), set()

    def _hooked(self, names: Iterable[str]) -> nn.Module:
        """Return an extractor of hooks, which watches the real forward."""
        plain = replace(self._options.without_example(), missing="skip")
        request: dict[Any, str | None] = dict.fromkeys(names)
        requests = {"train": request, "eval": request}
        return load_backend("hooks").extractor(self._model, requests, plain)


def prove(
    extractor: nn.Module,
    model: nn.Module,
    options: Options,
    whole: Callable[[nn.Module, Options], nn.Module],
) -> None:
    """Compare both modes of an extractor of fx with the real forward on the example inputs.

    Args:
        extractor: what was asked for.
        model: the model it was made of.
        options: with the example inputs.
        whole: makes an extractor of every node of a model, to find the first that differs.

    Raises:
        UntraceableModelError: if something differs, or the model runs in neither mode.

    """
    refuse_unmade(model)

    def compare(apart: Replica) -> None:
        _prove(apart, options, whole)

    with ONE_AT_A_TIME, more_recursion():
        run_apart(compare, model, extractor)


def _prove(
    apart: Replica, options: Options, whole: Callable[[nn.Module, Options], nn.Module]
) -> None:
    model, extractor, options = apart.model, apart.others[0], apart.options(options)
    args, kwargs = options.example
    example = _Example(apart, args, kwargs, options)
    failures: dict[str, Exception] = {}
    missing: Mapping[str, str] = extractor.missing_modes  # type: ignore[assignment]
    modes = [mode for mode in MODES if mode not in missing]
    for mode in modes:
        with undisturbed(model, extractor):
            try:
                switch(extractor, mode == "train")
                report = example.compare(extractor)
            except Exception as error:
                failures[mode] = error
                continue
            if report.first_difference is None:
                continue
            everything = whole(model, options)
            switch(everything, mode == "train")
            if example.is_named_otherwise(everything):
                continue
            found = example.compare(everything)
            raise _recorded_wrongly(model, mode, found.first_difference or report.first_difference)
    if len(failures) == len(modes):
        raise fails_on_example(failures) from failures[modes[-1]]


def _recorded_wrongly(model: nn.Module, mode: str, first: Check | None) -> UntraceableModelError:
    assert first is not None
    scope = first.node.rpartition(".")[0]
    where = f"module {scope!r}" if scope else f"the forward of {type(model).__name__}"
    return UntraceableModelError(
        f"torch.fx records another forward than the real one on the example inputs: in {mode} mode "
        f"{first.node!r}, in {where}, is the first node that differs{by(first)}. Ways out: name "
        "that module in tracer_kwargs={'leaf_modules': [...]}, or use backend='hooks' of "
        "featuretap-hooks, which watches the real forward",
        scope,
    )


def _module_outputs(
    model: nn.Module, names: Sequence[str], /, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Run the model under hooks that copy what the first call of each module returned.

    Only a first call has a name that says which call it is, whatever else is counted.
    """
    values: dict[str, Any] = {}
    with ExitStack() as stack:
        for path, module in ModuleTree(model).paths.items():
            if path not in names or path == "":
                continue

            def end(_m: Any, _a: Any, value: Any, path: str = path) -> None:
                values.setdefault(path, copy_value(value))

            stack.callback(module.register_forward_hook(end).remove)
        output = model(*args, **kwargs)
    if "" in names:
        # Not by a hook: the model may have a ``__call__`` of its own.
        values[""] = copy_value(output)
    return values


def _check(
    name: str,
    feature: Any,
    real: Mapping[str, Any],
    seen: Collection[str],
    is_memory: bool = False,
) -> Check:
    if name not in real:
        if name in seen:
            return Check(name, False, note="the real forward did not reach it")
        return Check(name, None, note="the real value was not seen")
    is_alike = describe(feature) == describe(real[name])
    if is_alike and is_memory:
        return Check(name, None, note="memory that nothing has been written to")
    if is_alike and isinstance(feature, torch.Tensor) and feature.is_meta:
        return Check(name, None, note="no values on the meta device")
    try:
        if identical(feature, real[name]):
            return Check(name, True, 0.0)
    except Exception as error:  # of a tensor that has no values, or does not tell them
        note = f"the values cannot be compared: {type(error).__name__}: {error}".split("\n", 1)[0]
        return Check(name, None, note=note)
    note = ""
    if not is_alike:
        note = f"{describe(feature)} instead of {describe(real[name])}"
    return Check(name, False, largest_difference(feature, real[name]), note)


def _is_memory(name: str, modules: Collection[str]) -> bool:
    """Say whether a node is memory that nothing has written yet, and no module that is called so."""
    is_module = name in modules or without_counter(name) in modules
    return not is_module and _UNWRITTEN.fullmatch(name) is not None


_UNWRITTEN = re.compile(r"(.*\.)?(new_)?empty(_like|_strided|_permuted)?(_\d+)?")
