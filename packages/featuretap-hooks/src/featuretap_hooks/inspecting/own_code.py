"""What the code of a model's own classes may do, read off its bytecode; nothing is run.

Read are the methods that a forward can come to by name, of classes that are not torch's, the functions
that these name, and those that modules keep. What is called in other ways (``getattr(self, name)()``) is
not seen.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from featuretap.inspecting.looking import is_a
from featuretap.inspecting.reading import (
    CHANGES_CONTAINERS,
    variables_of,
)
from featuretap.inspecting.whose import is_our_module
from featuretap.keeping.held import attributes, is_opened, parts_of, without_simple

from .facts import Facts, facts_of

__all__ = ["UNSEEN_WRITES", "OwnCode", "own_code"]

# Ways to the memory of a tensor by which it is written without a change of its version.
UNSEEN_WRITES = frozenset(
    "data numpy apply_ map_ map2_ storage untyped_storage data_ptr asarray from_numpy frombuffer "
    "to_dlpack from_dlpack __dlpack__ __array__ __array_interface__ "
    "_unsafe_preserve_version_counter".split()
)
_FUNCTIONS = (types.FunctionType, types.MethodType)
_SETS = frozenset("setattr __setattr__ __dict__ vars _buffers _parameters _modules".split())
# Not part of any forward, though Python may call them.
_ELSEWHERE = frozenset(
    "__init__ __new__ __init_subclass__ __getstate__ __setstate__ __reduce__ __reduce_ex__ __copy__ "
    "__deepcopy__ __repr__ __str__ __dir__ __del__".split()
)
# Ways to switch over what a comparison of the modules shows, and others.
_SWITCHES = frozenset(
    "register_forward_hook register_forward_pre_hook register_full_backward_hook "
    "register_full_backward_pre_hook register_backward_hook register_state_dict_pre_hook "
    "register_state_dict_post_hook register_load_state_dict_pre_hook "
    "register_load_state_dict_post_hook _register_state_dict_hook "
    "_register_load_state_dict_pre_hook register_hook register_post_accumulate_grad_hook".split()
)
_SWITCHES_UNSEEN = frozenset(
    "train eval requires_grad_ set_default_dtype set_grad_enabled __enter__ set_state "
    "register_module_forward_hook register_module_forward_pre_hook "
    "use_deterministic_algorithms set_deterministic_debug_mode set_float32_matmul_precision "
    "set_fastpath_enabled enable_flash_sdp enable_math_sdp enable_mem_efficient_sdp enable_cudnn_sdp "
    "_set_grad_enabled set_num_threads set_default_device set_detect_anomaly environ putenv "
    "set_rng_state set_rng_state_all manual_seed manual_seed_all setstate acquire "
    "set_autocast_enabled set_autocast_cpu_enabled set_autocast_dtype set_autocast_cpu_dtype "
    "set_autocast_gpu_dtype set_autocast_cache_enabled set_flags set_flush_denormal set_printoptions "
    "seterr setLevel chdir setrecursionlimit setswitchinterval".split()
)
# The same in two words, which are common names by themselves.
_SWITCHES_OF = tuple(map(frozenset, (("logging", "disable"), ("gc", "disable"))))
_SWITCHED = frozenset("data forward requires_grad training __class__".split())
# Ways to give the parameters of a module other memory.
_CONVERTS = frozenset("half double bfloat16 apply _apply".split())
# Where autograd lets parameters be written.
_UNGUARDED = frozenset("no_grad inference_mode set_grad_enabled data detach copy_".split())
# Ways to come to parameters without their names, and to write all of those of a module.
_COME_TO_ALL = frozenset("parameters named_parameters _parameters state_dict".split())
_WRITE_ALL = frozenset("load_state_dict reset_parameters".split())
# Ways to change, or to look at, what a call of a module runs.
_REWIRES = frozenset(
    "__dict__ vars __getattribute__ register_forward_hook register_forward_pre_hook "
    "register_module_forward_hook register_module_forward_pre_hook".split()
)
_REWIRED = frozenset("forward __class__".split())


class OwnCode(NamedTuple):
    """What forwards of a model may do.

    Attributes:
        writes_unseen: whether tensors may be written in ways that their version does not show.
        setters: classes whose methods set attributes of their own instance.
        stores_elsewhere: whether something may be set on any object.
        fills: whether something may be put into a container that is there already.
        switches: whether something may be switched over for a while: a flag, a hook, a setting of torch,
            random numbers, a lock, an attribute that one function sets twice. Such a forward must not
            end while something is.
        switches_unseen: whether that may be something which a comparison does not show.
        writes_weights: whether parameters may be written, or given another dtype.
        writes_any_weight: whether these may be such as the code does not name.
        writes_tensors: whether other tensors may be written that the code has not made.
        changes_outside: whether something may be changed that lies outside of the modules.
        rewires: whether something may change what a call of a module runs, or look at it.
        names: all names that the code mentions.

    """

    writes_unseen: bool
    setters: frozenset[type]
    stores_elsewhere: bool
    fills: bool
    switches: bool
    switches_unseen: bool
    writes_weights: bool
    writes_any_weight: bool
    writes_tensors: bool
    changes_outside: bool
    rewires: bool
    names: frozenset[str]

    def storing(self, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """Return those of ``modules`` that may hold something else after a forward than before."""
        if self.stores_elsewhere:
            return list(modules)
        return [
            module
            for module in modules
            if type(module) in self.setters or (self.fills and _holds_containers(module))
        ]


def _switches_unseen(names: frozenset[str], sets: frozenset[str]) -> bool:
    is_named = not (names.isdisjoint(_SWITCHES_UNSEEN) and sets.isdisjoint(_SWITCHED))
    return is_named or any(words <= names for words in _SWITCHES_OF)


def own_code(modules: Iterable[nn.Module]) -> OwnCode:
    """Read the code of the classes of ``modules``, and of the hooks on them."""
    modules = list(modules)
    kept = list(_kept_functions(modules))
    reached = _reached(modules, kept)
    facts = reached.facts
    names = frozenset[str]().union(*(each.names for each in facts))
    sets = frozenset[str]().union(*(each.sets for each in facts))
    unseen = any(each.sets_other_back for each in facts) or _switches_unseen(names, sets)
    # What these find outside of the modules is not looked at.
    unseen |= any(_changes_outside(facts_of(function.__code__)) for function in kept)
    switches = unseen or any(each.sets_back for each in facts)
    in_place = any(each.in_place for each in facts)
    stores_elsewhere = reached.stores_elsewhere or not names.isdisjoint(_SETS)
    return OwnCode(
        writes_unseen=not names.isdisjoint(UNSEEN_WRITES),
        setters=reached.setters,
        stores_elsewhere=stores_elsewhere,
        fills=any(map(_fills, facts)),
        switches=switches or not names.isdisjoint(_SWITCHES),
        switches_unseen=unseen,
        writes_weights=_may_write_weights(modules, names, in_place),
        writes_any_weight=any(map(_writes_any_weight, facts)),
        writes_tensors=in_place or any(map(_is_in_place, names)),
        changes_outside=stores_elsewhere or any(map(_changes_outside, facts)),
        rewires=not names.isdisjoint(_REWIRES) or not sets.isdisjoint(_REWIRED),
        names=names,
    )


class _Reached(NamedTuple):
    """What the functions say that a forward may come to, and which classes set attributes there."""

    facts: list[Facts]
    setters: frozenset[type]
    stores_elsewhere: bool


def _reached(modules: list[nn.Module], kept: Iterable[types.FunctionType]) -> _Reached:
    """Follow the names in the code, beginning with forwards, hooks and the ``kept`` functions."""
    by_name: dict[str, list[tuple[type, types.FunctionType]]] = {}
    for own in {type(module) for module in modules}:
        for name, function in _methods(own):
            by_name.setdefault(name, []).append((own, function))
    waiting: list[tuple[type | None, types.FunctionType]] = [
        (None, function) for function in (*_hooks(modules), *kept)
    ]
    for name in list(by_name):
        if name == "forward" or (name.startswith("__") and name.endswith("__")):
            waiting += by_name.pop(name)
    read: dict[types.FunctionType, Facts] = {}
    setters: set[type] = set()
    stores_elsewhere = False
    while waiting:
        kind, function = waiting.pop()
        facts = facts_of(function.__code__)
        if facts.sets_own and kind is not None:
            setters.add(kind)
        stores_elsewhere |= facts.sets_other or (facts.sets_own and kind is None)
        if function not in read:
            read[function] = facts
            for name in facts.names:
                waiting += by_name.pop(name, ())
            waiting += [(None, called) for called in _called_by_name(function, facts.names)]
    return _Reached(list(read.values()), frozenset(setters), stores_elsewhere)


def _holds_containers(module: nn.Module) -> bool:
    return any(_is_filled(value) for name, value in attributes(module) if name != "_buffers")


def _is_filled(value: Any) -> bool:
    """Say whether something may be put into ``value``, or into what it holds."""
    return any(map(_is_filled, value)) if isinstance(value, tuple) else is_opened(value)


def _may_write_weights(modules: list[nn.Module], names: frozenset[str], in_place: bool) -> bool:
    """Say so of code that names these things: most models do not, and are spared looking."""
    if not names.isdisjoint(_CONVERTS | _UNGUARDED | _WRITE_ALL) or any(map(_is_in_place, names)):
        return True
    if any(getattr(module, "max_norm", None) is not None for module in modules):
        return True  # embeddings scale the rows that they look up
    registries = [module._parameters for module in modules if isinstance(module._parameters, dict)]
    return in_place and any(not names.isdisjoint(registry) for registry in registries)


def _writes_any_weight(facts: Facts) -> bool:
    """Say so of one function: most that look at all parameters only ask for their device or dtype."""
    names = facts.names
    writes = facts.in_place or not names.isdisjoint(_UNGUARDED) or any(map(_is_in_place, names))
    return (writes and not names.isdisjoint(_COME_TO_ALL)) or not names.isdisjoint(_WRITE_ALL)


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


def _methods(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """Yield the functions that a class and its bases have of their own, by name."""
    for base in kind.__mro__:
        if not is_our_module(base.__module__):
            for name, value in list(vars(base).items()):
                if name not in _ELSEWHERE:
                    for function in _functions(value):
                        yield name, function


def _called_by_name(
    function: types.FunctionType, names: Iterable[str]
) -> Iterator[types.FunctionType]:
    """Yield the functions that a function finds among globals, and in the scopes around it."""
    for value in (*map(function.__globals__.get, names), *variables_of(function).values()):
        if is_a(value, types.FunctionType) and not is_our_module(value.__module__):
            yield value


def _kept_functions(modules: Iterable[nn.Module]) -> Iterator[types.FunctionType]:
    """Yield the functions that modules keep in attributes, or in containers there: ``self.act``."""
    for module in modules:
        for _, value in attributes(module):
            for kept in without_simple(parts_of(value)) if is_opened(value) else (value,):
                called = kept.func if is_a(kept, functools.partial) else kept
                if not is_a(called, (*_FUNCTIONS, nn.Module, type)):
                    called = vars(type(called)).get("__call__")
                function = called.__func__ if is_a(called, types.MethodType) else called
                if is_a(function, types.FunctionType) and not is_our_module(function.__module__):
                    yield from _functions(function)


def _fills(facts: Facts) -> bool:
    return facts.fills or not facts.names.isdisjoint(CHANGES_CONTAINERS)


def _changes_outside(facts: Facts) -> bool:
    return _fills(facts) or facts.sets_outside or "set" in facts.names


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """See through properties, class methods, and decorators that say what they wrap."""
    if isinstance(value, property):
        for accessor in (value.fget, value.fset, value.fdel):
            yield from _functions(accessor)
        return
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    seen = 0
    while value is not None and seen < 10:
        seen += 1
        if isinstance(value, types.FunctionType):
            yield value
        value = getattr(value, "__wrapped__", None)


def _hooks(modules: Iterable[nn.Module]) -> Iterator[types.FunctionType]:
    for module in modules:
        for registry in (module._forward_hooks, module._forward_pre_hooks):
            for hook in list(registry.values()) if registry else ():
                function = getattr(hook, "__func__", hook)
                if isinstance(function, types.FunctionType) and not is_our_module(hook.__module__):
                    yield function
