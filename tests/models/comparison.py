"""Real models: names beside torchvision's tool, and values beside copying hooks."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torchvision.models import feature_extraction

import featuretap
from featuretap.backends import Options
from featuretap.events import ModuleCall
from featuretap.modes import Recorded, record_modes
from featuretap.recording import Recording
from support import copied, identical, module_outputs

MODES = ("train", "eval")


@dataclass
class Comparison:
    """What one model showed."""

    model: str
    names: int = 0
    """Names that torchvision lists, both modes."""
    refused: list[str] = field(default_factory=list)
    """Of these, names that featuretap does not accept as meaning the same node."""
    corrected: list[tuple[str, str]] = field(default_factory=list)
    """Names that N5 corrects, with what torchvision took each for."""
    torchvision_fails: bool = False
    auto_leaves: dict[str, str] = field(default_factory=dict)
    values: int = 0
    """Module outputs compared."""
    wrong: list[str] = field(default_factory=list)
    """Of these, the ones that differ from the real forward."""
    untraceable: str = ""

    def row(self) -> str:
        """One line for a table."""
        return (
            f"{self.model}\tnames {self.names}\trefused {len(self.refused)}\t"
            f"corrected {len(self.corrected)}\tvalues {self.values}\twrong {len(self.wrong)}\t"
            f"auto leaves {len(self.auto_leaves)}"
            + ("\ttorchvision's tool fails" if self.torchvision_fails else "")
            + (f"\tnot traceable: {self.untraceable}" if self.untraceable else "")
        )


def compare(name: str, model: nn.Module, *args: Any, values: bool = True) -> Comparison:
    """Compare one model with torchvision's names and with the real forward."""
    result = Comparison(name)
    model.eval()
    try:
        recordings = record_modes(model, Options())
    except featuretap.UntraceableModelError as error:
        result.untraceable = error.location or str(error)
        return result
    for recording in recordings.values():
        if isinstance(recording, Recording):
            result.auto_leaves.update(recording.auto_leaves)
    for mode in MODES:
        compare_names(model, mode, recordings[mode], result)
    if values:
        compare_values(model, recordings["eval"], args, result)
    return result


def compare_names(model: nn.Module, mode: str, recording: Recorded, result: Comparison) -> None:
    """Look up every name that torchvision lists, and compare the nodes one by one."""
    try:
        theirs = torchvision_nodes(model, mode)
    except Exception:
        result.torchvision_fails = True
        return
    result.names += len(theirs)
    if not isinstance(recording, Recording):
        result.refused += [name for name, _ in theirs]
        return
    ours = recording.torchvision_points
    if list(ours) != [name for name, _ in theirs]:
        result.refused += [name for name, _ in theirs if name not in ours] or ["(another order)"]
        return
    for name, node in theirs:
        point, found = ours[name], recording.find(name)
        if not _same_node(point.value, node, is_call=point.name in recording.calls):
            result.refused.append(name)
        elif found is not point:
            result.corrected.append((name, point.name))


def compare_values(
    model: nn.Module, recording: Recorded, args: tuple[Any, ...], result: Comparison
) -> None:
    """Extract every module output together, and compare with a forward watched by copying hooks."""
    assert isinstance(recording, Recording)
    state = {key: value.clone() for key, value in tensors_of(model).items()}
    torch.manual_seed(0)
    with torch.no_grad():
        real = module_outputs(model, *copied(args))
    restore(model, state)
    names = dict(calls_of_modules(recording))
    extractor = featuretap.create_feature_extractor(
        model, list(names), backend="fx", suppress_diff_warning=True
    )
    torch.manual_seed(0)
    with torch.no_grad():
        features = extractor(*copied(args))
    restore(model, state)
    result.values = len(names)
    result.wrong = [name for name, call in names.items() if not same(features[name], real[call])]


def same(feature: Any, real: Any) -> bool:
    """Bit for bit; quantized tensors by their integers."""
    if isinstance(real, torch.Tensor) and real.is_quantized:
        return torch.equal(feature.int_repr(), real.int_repr())
    return identical(feature, real)


def calls_of_modules(recording: Recording) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the name of every call of a module, with the module's path and the number of the call."""
    counted: Counter[str] = Counter()
    calls = (event for event in recording.events if isinstance(event, ModuleCall))
    for name, call in zip(recording.calls, calls, strict=True):
        yield name, (call.path, counted[call.path])
        counted[call.path] += 1
    for name, point in recording.names.items():
        if isinstance(point.value, fx.Node) and point.value.op == "call_module":
            path = str(point.value.target)
            yield name, (path, counted[path])
            counted[path] += 1


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for key, value in tensors_of(model).items():
        value.data.copy_(state[key])


def torchvision_nodes(model: nn.Module, mode: str) -> list[tuple[str, fx.Node]]:
    """The names that torchvision's tool lists, with their nodes."""
    training = model.training
    tracer = feature_extraction.NodePathTracer(
        **feature_extraction._set_default_tracer_kwargs(None)
    )
    try:
        with linear_naming(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracer.trace(model.train(mode == "train"))
    finally:
        model.train(training)
    return [(name, node) for node, name in tracer.node_to_qualname.items()]


@contextmanager
def linear_naming() -> Iterator[None]:
    """Name as torchvision does, without its search of all earlier names for each node."""
    original = feature_extraction.NodePathTracer._get_node_qualname

    def quick(self: Any, scope: str, node: fx.Node) -> str:
        name = scope if node.op == "call_module" else f"{scope}.{node}" if scope else str(node)
        if re.match(r".+_[0-9]+$", name):
            name = name.rsplit("_", 1)[0]
        counters = self.__dict__.setdefault("_counters", {})
        if name in counters:
            name = f"{name}_{counters[name]}"
        counters[name] = 1
        counted = re.match(r"(.+)_([0-9]+)$", name)
        if counted:
            counters[counted[1]] = int(counted[2]) + 1
        return name

    feature_extraction.NodePathTracer._get_node_qualname = quick
    try:
        yield
    finally:
        feature_extraction.NodePathTracer._get_node_qualname = original


def _same_node(ours: Any, theirs: fx.Node, *, is_call: bool) -> bool:
    if is_call:
        return theirs.op == "call_module"
    if not isinstance(ours, fx.Node):
        return theirs.op == "placeholder"
    return ours.op == theirs.op and _target(ours) == _target(theirs)


def _target(node: fx.Node) -> str:
    """The target by name: ``x += y`` is ``add`` in torchvision, and in place with us."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op == "call_function" and name in (
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "ifloordiv",
    )
    return name[1:] if in_place else name
