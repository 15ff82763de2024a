"""``backend="auto"`` on models that fx cannot trace: transformers, detection and optical flow."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers_models import CONFIGS

import featuretap
import featuretap_hooks
from support import copied, identical

Case = tuple[nn.Module, dict[str, Any]]
OPERATIONS = 10


class Watched(TorchFunctionMode):
    """What modules and functions returned in one real forward, copied at once.

    Attributes:
        outputs: path of a module -> what its first call returned.
        tensors: path of a module, of ``scopes`` -> every tensor that was there while its forward
            ran: arguments, parameters, results of functions and of the modules called.

    """

    def __init__(self, scopes: Collection[str]) -> None:
        super().__init__()
        self._scopes = scopes
        self.outputs: dict[str, Any] = {}
        self.tensors: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._running: list[str] = []

    def run(self, model: nn.Module, kwargs: dict[str, Any]) -> None:
        handles: list[Any] = []
        for path, module in model.named_modules():
            hooks = self._before(path), self._after(path)
            handles.append(module.register_forward_pre_hook(hooks[0], with_kwargs=True))
            handles.append(module.register_forward_hook(hooks[1]))
            self._add(path, list(module.parameters(recurse=False)))
        try:
            with self:
                model(**kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(path)
            self._add(path, [args, kwargs])

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, value: Any) -> None:
            self._running.pop()
            self.outputs.setdefault(path, comparable(value))
            self._add(self._running[-1] if self._running else None, value)

        return hook

    def _add(self, path: str | None, value: Any) -> None:
        if path in self._scopes:
            with torch._C.DisableTorchFunction():
                self.tensors[path] += [tensor.clone() for tensor in tensors_in(value)]

    def __torch_function__(
        self, func: Any, kinds: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        self._add(self._running[-1] if self._running else None, value)
        return value


def comparable(value: Any) -> Any:
    """A copy of ``value`` as it is now; of a cache and its like, the type."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return type(value), {key: comparable(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [comparable(item) for item in value]
    is_plain = isinstance(value, (bool, int, float, str, torch.dtype, torch.device))
    return value if is_plain else type(value)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def check(model: nn.Module, kwargs: dict[str, Any], count: int | None = None) -> None:
    """Compare modules (``count`` of them, or all) and ten operations with the real forward."""
    model(**copied(kwargs))  # what models compute once and keep is there from now on
    chance = random.Random(0)
    operations = chance.sample(operations_of(model, kwargs), OPERATIONS)
    real = Watched({name.rpartition(".")[0] for name in operations})
    torch.manual_seed(0)
    real.run(model, copied(kwargs))
    modules = list(real.outputs)
    if count is not None:
        modules = ["", *chance.sample(modules[:-1], min(count, len(modules) - 1))]
    extractor = create(model, [*modules, *operations], kwargs)
    calls = []
    for _ in range(2):
        torch.manual_seed(0)
        features = extractor(**copied(kwargs))
        assert set(features) == {*modules, *operations}
        calls.append({name: comparable(value) for name, value in features.items()})
    for features in calls:
        assert [p for p in modules if not identical(features[p], real.outputs[p])] == []
    assert [name for name in operations if not identical(calls[0][name], calls[1][name])] == []
    assert [name for name in operations if not appeared(name, calls[0][name], real)] == []


def operations_of(model: nn.Module, kwargs: dict[str, Any]) -> list[str]:
    """List the nodes that are no modules, except memory that nobody has written yet."""
    listed = featuretap_hooks.get_graph_node_names(
        model, suppress_diff_warning=True, example_kwargs=kwargs
    )
    paths = dict(model.named_modules())
    is_written = [not name.rpartition(".")[2].startswith("empty") for name in listed]
    return [name for name, ok in zip(listed, is_written, strict=True) if ok and name not in paths]


def create(model: nn.Module, names: list[str], kwargs: dict[str, Any]) -> nn.Module:
    """Create an extractor, which warns at most once, of what fx could not do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extractor = featuretap.create_feature_extractor(
            model, names, backend="auto", example_kwargs=kwargs, suppress_diff_warning=True
        )
    assert [w.category for w in caught] in ([], [featuretap.FallbackWarning])
    return extractor


def hooks(model: nn.Module, names: list[str], kwargs: dict[str, Any]) -> nn.Module:
    """Create an extractor of the hooks backend."""
    return featuretap_hooks.create_feature_extractor(
        model, names, example_kwargs=kwargs, suppress_diff_warning=True
    )


def appeared(name: str, value: Any, real: Watched) -> bool:
    """Say whether a value, if it is a tensor, was in the forward of the module that its name says."""
    if not isinstance(value, torch.Tensor):
        return True
    return any(identical(value, tensor) for tensor in real.tensors[name.rpartition(".")[0]])


def detection(name: str) -> Case:
    import torchvision

    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    if "rcnn" in name:
        sizes |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 3}
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3, **sizes
    )
    pictures = [torch.rand(3, 64, 96), torch.rand(3, 80, 64)]
    return model.eval(), {"images": pictures[: 1 if name == "ssd300_vgg16" else 2]}


def raft() -> Case:
    import torchvision

    model = torchvision.models.get_model("raft_small", weights=None).eval()
    pictures = torch.rand(2, 1, 3, 128, 128)
    return model, {"image1": pictures[0], "image2": pictures[1], "num_flow_updates": 2}


@pytest.mark.parametrize("name", CONFIGS)
def test_reach_of_auto_is_every_module_and_operation_of_transformers(name):
    torch.manual_seed(0)
    with torch.no_grad():
        check(*CONFIGS[name]())


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
        "raft_small",
    ],
)
def test_reach_of_auto_is_torchvisions_detection_and_optical_flow(name):
    torch.manual_seed(0)
    with torch.no_grad():
        check(*(raft() if name == "raft_small" else detection(name)), count=8)


@pytest.mark.parametrize("name", ["detr", "swin"])
def test_reach_of_auto_is_the_same_for_one_module_as_for_the_whole_model(name):
    """Sizes and devices that a module is given by another are known where it is recorded alone."""
    torch.manual_seed(0)
    model, kwargs = CONFIGS[name]()
    operations = operations_of(model, kwargs)
    scopes: dict[str, list[str]] = defaultdict(list)
    for operation in operations:
        scopes[operation.rpartition(".")[0]].append(operation)
    failed: list[str] = []
    with torch.no_grad():
        expected = hooks(model, operations, kwargs)(**copied(kwargs))
        for scope, names in scopes.items():
            extractor = hooks(model, names, kwargs)
            try:
                alone = extractor(**copied(kwargs))
            except featuretap.NodeNotReachedError:
                failed.append(scope)
            else:
                failed += [name for name in names if not identical(alone[name], expected[name])]
    assert failed == []
