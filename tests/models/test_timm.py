"""A few timm models. All families: ``python tests/models/totals.py timm``."""

from __future__ import annotations

import pytest
from builders import timm_model
from comparison import compare

import featuretap


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_maxvit", "starnet_s050"])
def test_N7_V1_names_as_torchvision_and_values_as_the_real_forward(name):
    result = compare(name, *timm_model(name))
    assert result.names > 0
    assert result.values > 0
    assert not result.refused
    assert not result.wrong


def test_E2_submodules_that_cannot_be_traced_become_leaves_by_themselves():
    """torchvision's tool cannot trace this model at all."""
    result = compare("convit_tiny", *timm_model("convit_tiny"))
    assert result.torchvision_fails
    assert len(result.auto_leaves) == 10
    assert all(path.endswith(".attn") for path in result.auto_leaves)
    assert not result.wrong


def test_E2_a_root_that_branches_on_sizes_is_refused_with_file_and_line():
    model, _ = timm_model("test_vit")
    with pytest.raises(featuretap.UntraceableModelError, match=r"pos_embed\.py:\d+: TraceError"):
        featuretap.get_graph_node_names(model, backend="fx")
