"""The command line: how it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from command import Run, fails, succeeds

# As in a process of its own, where no default device is set.
pytestmark = pytest.mark.usefixtures("on_the_cpu")

BLOCK = ("net:Block", "--backend", "fx", "--input", "1x4", "--nodes", "lin")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ((), ["the following arguments are required: MODULE:NAME", "--help"]),
        (("net.Block",), ["'net.Block' does not say which model", "Did you mean net:Block?"]),
        (("net:",), ["'net:' does not say which model", "module:name"]),
        (("nett:Block",), ["there is no module 'nett'", "net", "Run the command in the directory"]),
        (("net.py:Block",), ["there is no module 'net.py'", "Did you mean net?"]),
        (("torch.nm:Linear",), ["there is no module 'torch.nm'", "torch.nn"]),
        (
            ("broken:Net",),
            ["importing 'broken' failed", "broken.py:1", "pip install no_such_package"],
        ),
        (
            ("wrong:Net",),
            ["importing 'wrong' failed: ZeroDivisionError: division by zero", "wrong.py:1"],
        ),
        (("net:Blok",), ["'net' has no 'Blok'", "Did you mean net:Block?"]),
        (("torch:nn.Linar",), ["'torch:nn' has no 'Linar'", "torch:nn.Linear"]),
        (("torch:nn",), ["'torch:nn' is of type module, which makes no model"]),
        (
            ("net:Unlucky",),
            ["net:Unlucky() raised RuntimeError: no luck", "net.py:", "It takes ()"],
        ),
        (("net:Block", "--arg", "a={[]: 1}"), ["net:Block(a='{[]: 1}') raised TypeError"]),
        (
            ("net:Block", "--input", "1x4", "--nodes", ","),
            ["--nodes ',' names no node", "--nodes ''"],
        ),
        (("net:Block", "--arg", "a=1"), ["net:Block(a=1) raised TypeError", "It takes (width=4)"]),
        (("net:number",), ["net:number() returned int, not a torch.nn.Module"]),
        (("net:ready", "--arg", "3"), ["'net:ready' is a model already: leave out --arg"]),
        (
            ("net:Untraceable", "--backend", "fx"),
            ["torch.fx cannot record Untraceable.forward at ", "net.py:"],
        ),
        (
            ("net:Block", "--input", "1,4"),
            ["--input '1,4' is no shape", "Did you mean --input 1x4?"],
        ),
        (("net:Block", "--input=-1x4"), ["--input '-1x4' is no shape", "1x3x224x224"]),
        (
            ("net:Block", "--input", "1x4:flot32"),
            ["unknown dtype", "Did you mean --input 1x4:float32?"],
        ),
        (
            ("net:Block", "--input", "1x5"),
            ["Block does not run with --input 1x5: RuntimeError", "(x)"],
        ),
        (
            ("net:Block", "--input", "1x5", "--nodes", "lin"),
            ["Block does not run with --input 1x5"],
        ),
        (("net:Block", "--input", "9" * 18, "--nodes", "x"), ["cannot be made on cpu", "smaller"]),
        (("net:Tokens", "--input", "2x3:int64"), ["missing", "scale", "takes (ids, scale)"]),
        (
            (*BLOCK, "--nodes", "lim"),
            ["'lim' is no node", "Did you mean 'lin'?", "Without --nodes"],
        ),
        ((*BLOCK, "--nodes", "q*"), ["no node of the model matches 'q*'", "Without --nodes"]),
        (("net:Block", "--nodes", "lin"), ["--nodes needs --input"]),
        ((*BLOCK, "--device", "meta"), ["--nodes needs values"]),
        (("net:Block", "--input", "1x4", "--save", "o.npz"), ["--save needs --nodes"]),
        ((*BLOCK, "--save", "o.txt"), ["--save 'o.txt' has no format", ".safetensors or .npz"]),
        (
            (*BLOCK, "--save", "no/o.npz"),
            ["--save 'no/o.npz' cannot be written: make the folder 'no'"],
        ),
        (
            (*BLOCK, "--save", "folder.npz"),
            ["--save 'folder.npz' cannot be written: it is a folder"],
        ),
        ((*BLOCK, "--save", f"{'o' * 300}.npz"), ["o.npz' cannot be written: OSError", "too long"]),
        ((*BLOCK, "--save", f"{'o' * 300}.safetensors"), ["o.safetensors' cannot be written: "]),
        (("net:Block", "--device", "cdua"), ["--device 'cdua' is no device of torch"]),
        (("net:Block", "--backend", "fxx"), ["there is no backend 'fxx'", "'fx'"]),
        (("net:Block", "--seed", "x"), ["--seed 'x' is no 64-bit integer"]),
        (("net:Block", "--seed", "9" * 30), ["is no 64-bit integer"]),
        (("net:Block", "--inptu", "1x4"), ["no argument '--inptu'", "Did you mean --input?"]),
        (("net:Block", "--train", "--eval"), ["--eval: not allowed with argument --train"]),
    ],
)
def test_errors(run: Run, tmp_path: Path, argv: tuple[str, ...], parts: list[str]) -> None:
    """A mistake is one line on stderr: what was asked, what is wrong, and what to do next."""
    (tmp_path / "folder.npz").mkdir()
    message = fails(run(*argv))
    for part in parts:
        assert part in message


def test_unknown_weights(run: Run) -> None:
    """The weights that there are for a torchvision model are named."""
    pytest.importorskip("torchvision")
    message = fails(run("torchvision.models:resnet18", "--weights", "IMAGENET1K_V9"))
    assert "no weights 'IMAGENET1K_V9'. Did you mean IMAGENET1K_V1?" in message


def test_a_dtype_that_numpy_has_not(run: Run) -> None:
    """The error names the format that has it."""
    argv = ("torch.nn:Identity", "--input", "1x4:bfloat16", "--nodes", "input", "--save")
    message = fails(run(*argv, "out.npz"))
    assert "NumPy has no bfloat16" in message
    assert ".safetensors" in message
    assert not Path("out.npz").exists()
    succeeds(run(*argv, "out.safetensors"))


@pytest.mark.parametrize(
    ("package", "argv"),
    [
        ("safetensors", (*BLOCK, "--save", "out.safetensors")),
        ("numpy", (*BLOCK, "--save", "out.npz")),
        ("timm", ("timm:create_model", "--arg", "resnet18")),
        ("torchvision", ("torchvision.models:resnet18",)),
    ],
)
def test_missing_package(
    run: Run, monkeypatch: pytest.MonkeyPatch, package: str, argv: tuple[str, ...]
) -> None:
    """A package that is not there is named, with the line that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    message = fails(run(*argv))
    assert f"the package {package}" in message
    assert message.rstrip().endswith(f"pip install {package}")
