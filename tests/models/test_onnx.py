"""Rule M4, trap 38: ONNX files show the paths of the model's modules."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision

import featuretap

NODES = ["layer1.0.add", "layer2.0.conv1"]


@pytest.mark.parametrize("name", ["fx", "hooks"])
def test_M4_trap38_onnx_keeps_module_paths(name):
    model, x = torchvision.models.resnet18().eval(), torch.randn(1, 3, 32, 32)
    extractor = featuretap.create_feature_extractor(model, NODES, backend=name, example_args=(x,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        program = torch.onnx.export(extractor, (x,), dynamo=True, verbose=False)
    scopes = [node.metadata_props["pkg.torch.onnx.name_scopes"] for node in program.model.graph]
    # The exporter folds a batch norm into its convolution, which then has its place.
    assert any("'layer1', 'layer1.0', 'layer1.0.bn2'" in scope for scope in scopes)
    assert "'layer2.0.conv1'" in scopes[-1]
    assert len(program.model.graph.outputs) == len(NODES)
