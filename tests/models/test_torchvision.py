"""Real torchvision models. All of them: ``python tests/models/totals.py torchvision``."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from builders import torchvision_model
from comparison import compare, linear_naming, torchvision_nodes
from torch import nn
from torchvision.models import feature_extraction, resnet18, vit_b_32
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.transforms import v2

import featuretap
import featuretap.torchvision
from support import identical

GOLDEN = Path(__file__).parents[1] / "golden" / "torchvision_exceptions.tsv"
SMALL = [
    "alexnet",
    "densenet121",
    "fcn_resnet50",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "quantized_resnet18",
    "r3d_18",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]


@pytest.mark.parametrize("name", SMALL)
def test_N7_V1_names_as_torchvision_and_values_as_the_real_forward(name):
    model, x = torchvision_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of quantization
        result = compare(name, model, x)
    assert not result.untraceable
    assert result.names > 0
    assert result.values > 0
    assert not result.refused
    assert not result.wrong
    known = {tuple(line.split("\t")[:2]) for line in GOLDEN.read_text().splitlines()}
    assert {(name, corrected) for corrected, _ in result.corrected} <= known


@pytest.mark.parametrize("build", [resnet18, vit_b_32])
def test_the_linear_naming_used_here_is_torchvisions(build):
    """The comparison is only as good as its stand-in for torchvision's quadratic naming."""
    model = build()
    quick = [name for name, _ in torchvision_nodes(model, "eval")]
    _, slow = feature_extraction.get_graph_node_names(model, suppress_diff_warning=True)
    assert quick == slow
    with linear_naming():
        pass


@pytest.mark.parametrize("version", [1, 2])
def test_V2_trap17_the_last_node_of_mvit_is_the_output_of_the_model(version):
    """Its shortcut is added in place, by a function whose result nobody uses."""
    block = MSBlockConfig(2, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2])
    options = dict.fromkeys(
        ["residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn"],
        version == 2,
    )
    model = MViT((32, 32), 4, [block] * 2, num_classes=5, **options).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    extractor = featuretap.create_feature_extractor(model, ["head.1", ""], backend="fx")
    with torch.no_grad():
        assert identical(extractor(x)["head.1"], model(x))
    result = compare("mvit", model, x)
    assert not result.refused
    assert not result.wrong


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_b_32", "mobilenet_v3_small", "swin_t", "densenet121", "googlenet"]
)
def test_M4_compile_and_export_six_real_models(name, monkeypatch):
    # Compiled and exported attention leaves torch's fast path, whose last bits differ.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    model, x = torchvision_model(name)
    names = featuretap.get_graph_node_names(model, suppress_diff_warning=True)
    modules = dict(model.named_modules())
    picked = [n for n in names if n in modules][2::25]
    extractor = featuretap.create_feature_extractor(model, [*picked, ""])
    with torch.no_grad():
        expected = extractor(x)
        compiled = torch.compile(extractor, fullgraph=True, backend="eager")(x)
        program = torch.export.export(extractor, (x,))
        exported = program.module()(x)
    for key, value in expected.items():
        assert identical(compiled[key], value)
        assert identical(exported[key], value)
    stacks = [node.meta.get("nn_module_stack") or {} for node in program.graph.nodes]
    paths = {path for stack in stacks for path, _ in stack.values()}
    leaves = {node.target for node in extractor.graph.nodes if node.op == "call_module"}
    assert leaves <= {re.sub(r"@\d+$", "", path) for path in paths}
    torch._dynamo.reset()


def test_drop_in_lists_both_modes_and_extracts_like_torchvision():
    model = resnet18().eval()
    theirs = feature_extraction.get_graph_node_names(model)
    assert featuretap.torchvision.get_graph_node_names(model) == theirs
    x = torch.randn(1, 3, 32, 32)
    layers = {"layer1": "a", "layer4": "b"}
    expected = feature_extraction.create_feature_extractor(model, layers)
    extractor = featuretap.torchvision.create_feature_extractor(model, layers)
    assert identical(dict(extractor(x)), dict(expected(x)))
    assert list(extractor.state_dict()) == list(expected.state_dict())


def test_drop_in_warns_where_a_name_meant_another_node():
    with pytest.warns(
        UserWarning,
        match=r"'encoder.layers.encoder_layer_0.ln_1' is the node .*ln_1' here; "
        r"torchvision's tool took it for 'encoder.layers.encoder_layer_0.ln_2'",
    ):
        featuretap.torchvision.create_feature_extractor(
            vit_b_32(), ["encoder.layers.encoder_layer_0.ln_1"]
        )


def test_drop_in_refuses_with_torchvisions_kinds_of_error():
    with pytest.raises(AssertionError, match="nothing to extract"):
        featuretap.torchvision.create_feature_extractor(resnet18())
    with pytest.raises(ValueError, match="no node"):
        featuretap.torchvision.create_feature_extractor(resnet18(), ["l"])


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "mobilenet_v3_small", "swin_t"])
def test_drop_in_can_be_scripted(name):
    model, x = torchvision_model(name)
    names = [n for n, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; ln_1 meant ln_2
        extractor = featuretap.torchvision.create_feature_extractor(model, names[:3])
        scripted = torch.jit.script(extractor)
        with torch.no_grad():
            features, expected = scripted(x), extractor(x)
    assert identical(OrderedDict(features), expected)


def test_V2_transforms_inside_a_model_are_applied(backend):
    normalize = v2.Normalize([0.5] * 3, [0.25] * 3)
    model = nn.Sequential(normalize, v2.CenterCrop(4), nn.Conv2d(3, 2, 1)).eval()
    x = torch.rand(1, 3, 6, 6)
    extractor = featuretap.create_feature_extractor(model, ["0", "1", "2"], backend=backend)
    features = extractor(x)
    assert identical(features["0"], normalize(x))
    assert identical(features["2"], model(x))
