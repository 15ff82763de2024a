"""``backend="auto"`` on models that fx cannot trace: transformers, detection and optical flow."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
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
        tensors: path of a module -> every tensor that was there while its forward ran: arguments,
            parameters, results of functions and of the modules called.

    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}
        self.tensors: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._running: list[str] = []

    def run(self, model: nn.Module, kwargs: dict[str, Any]) -> None:
        handles: list[Any] = []
        for path, module in model.named_modules():
            hooks = self._before(path), self._after(path)
            handles.append(module.register_forward_pre_hook(hooks[0], with_kwargs=True))
            handles.append(module.register_forward_hook(hooks[1]))
            self.tensors[path] += [t.clone() for t in module.parameters(recurse=False)]
        try:
            with self:
                model(**kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.tensors[path] += [t.clone() for t in tensors_in([args, kwargs])]
            self._running.append(path)

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, value: Any) -> None:
            self._running.pop()
            self.outputs.setdefault(path, comparable(value))
            self._add(value)

        return hook

    def _add(self, value: Any) -> None:
        if self._running:
            self.tensors[self._running[-1]] += [t.clone() for t in tensors_in(value)]

    def __torch_function__(
        self, func: Any, kinds: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        self._add(value)
        return value


def comparable(value: Any) -> Any:
    """A copy of ``value`` as it is now; of what is no tensor and no container, such as a cache, the type."""
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
    torch.manual_seed(0)
    real = Watched()
    real.run(model, copied(kwargs))
    listed = featuretap_hooks.get_graph_node_names(
        model, suppress_diff_warning=True, example_kwargs=kwargs
    )
    paths = dict(model.named_modules())
    chance = random.Random(0)
    candidates = [name for name in listed if name not in paths]
    operations = chance.sample(candidates, min(OPERATIONS, len(candidates)))
    modules = list(real.outputs)
    if count is not None:
        modules = ["", *chance.sample(modules[:-1], min(count, len(modules) - 1))]
    extractor = create(model, [*modules, *operations], kwargs)
    assert len(operations) == OPERATIONS
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


def create(model: nn.Module, names: list[str], kwargs: dict[str, Any]) -> nn.Module:
    """Create an extractor, which warns at most once, of what fx could not do."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        extractor = featuretap.create_feature_extractor(
            model, names, backend="auto", example_kwargs=kwargs
        )
    ours = [w for w in caught if issubclass(w.category, featuretap.FallbackWarning)]
    assert len(ours) <= 1
    assert [w for w in caught if w not in ours and w.category is UserWarning] == []
    return extractor


def appeared(name: str, value: Any, real: Watched) -> bool:
    """Say whether a value, if it is a tensor, was in the forward of the module that its name says."""
    if not isinstance(value, torch.Tensor):
        return True
    return any(identical(value, tensor) for tensor in real.tensors[name.rpartition(".")[0]])


def detection(name: str, size: int = 96) -> Case:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
    return model.eval(), {"images": [torch.rand(3, size, size), torch.rand(3, size, size // 2)]}


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
