"""Names that are taken on trust before a forward has run."""

from __future__ import annotations

import types
from fnmatch import fnmatchcase

import pytest
import torch
import torchvision
from torch import nn

import featuretap
import featuretap_hooks
from support import identical

create = featuretap_hooks.create_feature_extractor
X = torch.ones(2, 4)


class ManyNamespaces(nn.Module):
    def forward(self, x):
        y = torch.fft.fft(x).real + torch.special.expit(x)
        y = torch.linalg.norm(y, dim=1, keepdim=True) + torch.linalg.vector_norm(y)
        y = torch.sparse.mm(torch.eye(2).to_sparse(), y)
        y = torch.ops.aten.add.Tensor(y, x)
        return torch.ops.aten.mul(y, x) + torch.special.gammaln(y.abs() + 1)


def test_N9_every_name_that_is_listed_is_accepted_without_example_inputs():
    names = featuretap_hooks.get_graph_node_names(ManyNamespaces(), example_args=(X,))
    assert {"fft_fft", "linalg_norm", "special_expit", "_sparse_mm", "add_tensor"} <= set(names)
    assert list(create(ManyNamespaces(), list(names))(X)) == names


def test_N9_an_operator_that_is_registered_later_is_accepted():
    with pytest.raises(featuretap.NodeNotFoundError):
        create(nn.Identity(), "featuretap_twice_default")
    library = torch.library.Library("featuretap_tests", "FRAGMENT")
    library.define("featuretap_twice(Tensor x) -> Tensor")
    library.impl("featuretap_twice", lambda x: x * 2, "CompositeImplicitAutograd")

    class Calls(nn.Module):
        def forward(self, x):
            return torch.ops.featuretap_tests.featuretap_twice.default(x)

    assert torch.equal(create(Calls(), "featuretap_twice_default")(X).popitem()[1], X * 2)


@pytest.mark.parametrize(
    "name", ["sofmax", "ad", "linalg_nrm", "ft_fft", "add_tensr", "special_expt", "getatr", "x.add"]
)
def test_E1_a_mistyped_name_is_refused_without_example_inputs(name):
    with pytest.raises(featuretap.NodeNotFoundError):
        create(ManyNamespaces(), name)


def test_E1_functions_that_a_library_registers_later_are_nodes():
    """``torchvision`` may be imported after the first extractor was made."""

    class Late(nn.Module):
        def forward(self, x):
            return late.registered_late(x)

    featuretap_hooks.create_feature_extractor(nn.ReLU(), [""])
    late = types.ModuleType("late")
    exec("import torch.fx\ndef registered_late(x): return x * 2", vars(late))
    exec("torch.fx.wrap('registered_late')", vars(late))
    try:
        extractor = featuretap_hooks.create_feature_extractor(Late(), ["registered_late"])
        assert torch.equal(extractor(torch.ones(2))["registered_late"], torch.full((2,), 2.0))
    finally:
        registered = torch.fx._symbolic_trace._wrapped_fns_to_patch
        for key in [key for key in registered if "registered_late" in key]:
            del registered[key]


class UsesTorchvisionsFunctions(nn.Module):
    def forward(self, boxes):
        area = torchvision.ops.box_area(boxes)
        return area + torchvision.ops.box_convert(boxes, "xyxy", "xywh").sum()


def test_N9_functions_of_torchvision_are_taken_on_trust():
    model, boxes = UsesTorchvisionsFunctions(), torch.rand(3, 4)
    features = create(model, ["box_area", "box_convert"])(boxes)
    assert identical(features["box_area"], torchvision.ops.box_area(boxes))
    with pytest.raises(featuretap.NodeNotFoundError):
        create(model, ["box_iou"])


@pytest.mark.parametrize("pattern", ["act_[1]", "act_?", "a*_[0-9]", "add_[12]"])
def test_API_a_glob_of_numbers_is_looked_up_when_the_forward_runs(pattern):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.act(x) + 1) + 1

    found = featuretap_hooks.create_feature_extractor(Twice(), pattern)(X)
    assert list(found) == [name for name in ("act_1", "add_1") if fnmatchcase(name, pattern)]
