"""The command line: the table of features that it prints, and the files that it saves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from command import Run, fails, line_with, succeeds
from support import drawn

# As in a process of its own, where no default device is set.
pytestmark = pytest.mark.usefixtures("on_the_cpu")


def built(name: str, seed: int = 0) -> Any:
    """Build a model of ``net.py`` as the command does."""
    torch.manual_seed(seed)
    return getattr(importlib.import_module("net"), name)().eval()


def hooked(model: nn.Module, x: torch.Tensor) -> dict[str, list[Any]]:
    """Run ``model`` and return what plain forward hooks see, copied at once, call by call."""
    seen: dict[str, list[Any]] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            copied = output.clone() if isinstance(output, torch.Tensor) else output
            seen.setdefault(path, []).append(copied)

        return keep

    for path, module in model.named_modules():
        module.register_forward_hook(hook(path))
    with torch.no_grad():
        model(x)
    return seen


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)


# -- the table ------------------------------------------------------------------------------------


def test_table(run: Run) -> None:
    """Each value has a row, in execution order, and its statistics are those of the real forward."""
    lines = succeeds(
        run("net:Net", "--input", "2x5x4", "--nodes", "blocks.?.relu,x", "--nodes", "")
    )
    assert lines[0] == "Net (net:Net)  4 features  eval mode  input 2x5x4  seed 0"
    assert lines[2].split() == ["node", "shape", "dtype", "mean", "std", "min", "max"]
    assert [line.split()[0] for line in lines[3:]] == [
        "x",
        "blocks.0.relu",
        "blocks.1.relu",
        "(output)[0]",
        "(output)[1]",
    ]
    relu = hooked(built("Net"), drawn(2, 5, 4))["blocks.1.relu"][0].double()
    expected = [relu.mean(), relu.std(correction=0), relu.min(), relu.max()]
    row = line_with(lines, "blocks.1.relu", "2x5x4", "float32").split()[3:]
    assert row == [f"{value.item():.4f}" for value in expected]
    assert line_with(lines, "(output)[0]", "2x5", "int64").split()[-2].isdigit()
    assert line_with(lines, "(output)[1]", "=", "5", "int", "-", "-", "-", "-")
    assert len({len(line) for line in lines[2:]}) == 1


def test_table_of_one_mode(run: Run) -> None:
    """What exists in one mode only can be extracted in that mode."""
    argv = ("net:Net", "--backend", "fx", "--input", "1x2x4", "--nodes", "dropout")
    assert line_with(succeeds(run(*argv, "--train")), "dropout", "1x2x4", "float32")
    assert "'dropout' is a node in train mode only, and is asked for in eval mode" in fails(
        run(*argv)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64", "bool", "int64", "uint8"])
@pytest.mark.parametrize("shape", ["3x4", "1", "0x4"])
def test_table_of_any_dtype(run: Run, dtype: str, shape: str) -> None:
    """No dtype and no number of values is too odd for a row."""
    lines = succeeds(run("torch.nn:Identity", "--input", f"{shape}:{dtype}", "--nodes", "input"))
    row = line_with(lines, "input", shape, dtype).split()
    assert len(row) == 7
    assert (row[3] == "-") == (dtype == "complex64" or shape == "0x4")


def test_seed(run: Run) -> None:
    """One seed gives one result, another seed another."""
    argv = ("net:Net", "--input", "2x5x4", "--train", "--nodes", "dropout")
    first, again, other = (run(*argv, "--seed", seed) for seed in ("7", "7", "8"))
    assert first == again
    assert succeeds(first)[3] != succeeds(other)[3]


def test_seed_of_the_forward(run: Run) -> None:
    """What the forward draws does not depend on what building the model has drawn."""
    argv = ("net:Net", "--input", "2x5x4", "--train", "--seed", "7", "--save", "out.safetensors")
    succeeds(run(*argv, "--nodes", "dropout"))
    blocks = hooked(built("Net", seed=7), drawn(2, 5, 4, seed=7))["blocks"][0]
    torch.manual_seed(7)
    assert same(load("out.safetensors")["dropout"], nn.functional.dropout(blocks))


# -- saving ---------------------------------------------------------------------------------------


def load(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".npz"):
        numpy = pytest.importorskip("numpy")
        with numpy.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return dict(pytest.importorskip("safetensors.torch").load_file(path))


@pytest.mark.parametrize("target", ["out.safetensors", "out.npz"])
def test_save(run: Run, target: str) -> None:
    """A file has bit for bit what hooks see in the real forward, and numbers as scalars."""
    nodes = "blocks.*.lin,blocks.*.relu*,blocks,stubborn,attn,argmax,getattr,getitem_2"
    lines = succeeds(
        run("net:Net", "--input", "2x5x4", "--nodes", nodes, "--seed", "3", "--save", target)
    )
    assert lines[-2:] == ["", f"saved 13 tensors to {target}"]
    saved = load(target)
    seen = hooked(built("Net", seed=3), drawn(2, 5, 4, seed=3))
    for name in ("blocks.0.lin", "blocks.0.relu", "blocks.1.relu", "blocks", "stubborn"):
        assert same(saved[name], seen[name][0]), name
    for block in ("blocks.0", "blocks.1"):
        assert same(saved[f"{block}.relu_1"], seen[f"{block}.relu"][1])
    assert same(saved["attn[0]"], seen["attn"][0][0])
    assert same(saved["attn[1]"], seen["attn"][0][1])
    assert same(saved["argmax"], seen[""][0][0])
    assert saved["getattr"].tolist() == [2, 5, 4]
    assert saved["getitem_2"].item() == 5
    assert len(saved) == 13


@pytest.mark.parametrize("target", ["out.safetensors", "out.npz"])
def test_save_a_torchvision_model(run: Run, target: str) -> None:
    """In-place activations do not reach what is saved."""
    models = pytest.importorskip("torchvision.models")
    nodes = "layer1.0.bn1,layer1.0.relu,layer4,avgpool,flatten,fc"
    argv = ("torchvision.models:resnet18", "--input", "1x3x64x64", "--nodes", nodes)
    succeeds(run(*argv, "--save", target))
    torch.manual_seed(0)
    seen = hooked(models.resnet18().eval(), drawn(1, 3, 64, 64))
    saved = load(target)
    for name in ("layer1.0.bn1", "layer1.0.relu", "layer4", "avgpool", "fc"):
        assert same(saved[name], seen[name][0]), name
    assert same(saved["flatten"], seen["avgpool"][0].flatten(1))


def test_save_the_output(run: Run) -> None:
    """Names that Python functions could not take as keywords are as good as others."""
    argv = ("net:Named", "--input", "2x4", "--nodes", "file", "--nodes", "", "--save", "out.npz")
    succeeds(run(*argv))
    saved = load("out.npz")
    assert sorted(saved) == ["[0]", "[1]", "file"]
    assert same(saved["file"], drawn(2, 4))
    assert same(saved["[1]"], torch.tensor(0.1, dtype=torch.float64))


def test_save_leaves_out_what_is_no_tensor(run: Run) -> None:
    """What a file cannot hold is named on stderr; a file without anything is an error."""
    argv = ["net:Named", "--input", "2x4", "--save", "out.safetensors", "--nodes", "getattr"]
    message = fails(run(*argv))
    assert "there is no tensor among the nodes asked for (getattr is a device)" in message
    code, out, err = run(*argv, "--nodes", "file")
    assert (code, err) == (0, "featuretap: note: not saved: getattr is a device\n")
    assert out.endswith("saved 1 tensor to out.safetensors\n")


def test_save_says_which_tensors_a_file_cannot_hold(run: Run) -> None:
    argv = ["net:Sparse", "--input", "2x4", "--save", "out.npz", "--nodes", "relu,to_sparse"]
    _, _, err = run(*argv)
    assert err == "featuretap: note: not saved: to_sparse is a sparse_coo tensor\n"
