"""The command line: what it prints, what it saves, and how it fails."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featuretap import FallbackWarning
from featuretap.__main__ import main
from featuretap.cli.text import notes_on_fallback
from support import drawn

# As in a process of its own, where no default device is set.
pytestmark = pytest.mark.usefixtures("on_the_cpu")

NETWORK = '''
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.lin = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.relu(self.lin(x)) + x)


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.lin(x) if x.sum() > 0 else -self.lin(x)


class Net(nn.Module):
    def __init__(self, width=4, depth=2):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(width))
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.stubborn = Stubborn()
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        x = self.blocks(x + self.shift)
        if self.training:
            x = F.dropout(x)
        x = self.stubborn(x)
        y, _ = self.attn(x, x, x)
        return self.attn.out_proj(y).argmax(-1), x.shape[1]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 4)

    def forward(self, ids, scale):
        return self.table(ids) * scale


class Loose(nn.Module):
    """Does not run on the meta device: the tensor is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.weight = [torch.ones(4)]

    def forward(self, x):
        return x * self.weight[0]


class Swap(nn.Module):
    """In train mode ``relu_1`` is a function, in eval mode it is the module's second call."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        if self.training:
            return F.relu(x)
        return self.relu(self.relu(x))


class EvalOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return x if self.training and x.sum() > 0 else self.lin(x)


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Unlucky(nn.Module):
    def __init__(self):
        raise RuntimeError("no\\nluck")


class Named(nn.Module):
    def forward(self, file):
        device = file.device
        return (file + 1).to(device), 0.1


def make(what="Block", weights=None):
    return globals()[what]()


def number():
    return 3


ready = Block()
'''

Answer = tuple[int, str, str]
Run = Callable[..., Answer]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Call the command in a directory that holds ``net.py``; returns exit code, stdout, stderr."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*argv: str) -> Answer:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    sys.modules.pop("net", None)


def succeeds(answer: Answer) -> list[str]:
    """Check that ``answer`` says nothing on stderr and has exit code 0; return its lines."""
    code, out, err = answer
    assert (code, err) == (0, "")
    return out.splitlines()


def fails(answer: Answer) -> str:
    """Check that ``answer`` is one line on stderr and exit code 2; return what it says."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("featuretap: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("featuretap: error: ")


def line_with(lines: list[str], *words: str) -> str:
    """Return the one line whose words, guides aside, begin with ``words``."""
    (found,) = (line for line in lines if tuple(line.strip("│├└─ ").split())[: len(words)] == words)
    return found


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


# -- the tree -------------------------------------------------------------------------------------

TREE = """\
Net (net:Net)  19 nodes  eval mode

├─ x
├─ shift         parameter
├─ add
├─ blocks        (Sequential)
│  ├─ 0          (Block)
│  │  ├─ lin     Linear
│  │  ├─ relu    ReLU
│  │  ├─ add
│  │  └─ relu_1  ReLU
│  └─ 1          (Block)
│     ├─ lin     Linear
│     ├─ relu    ReLU
│     ├─ add
│     └─ relu_1  ReLU
├─ dropout                                        [train only]
├─ stubborn      Stubborn                         [auto leaf]
├─ attn          MultiheadAttention               [node and scope]
│  └─ out_proj   NonDynamicallyQuantizableLinear
├─ getitem
├─ getitem_1
├─ argmax
├─ getattr
└─ getitem_2

auto leaf stubborn, because fx cannot record what is inside: TraceError: """


def test_tree(run: Run) -> None:
    """Every node stands below its scope, with the type that it calls and its marks."""
    assert "\n".join(succeeds(run("net:Net"))).startswith(TREE)


def test_tree_where_the_terminal_cannot_draw(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are drawn with ASCII where the encoding has no others."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["net:Block"]) == 0
    output.seek(0)
    assert [line[:6] for line in output.read().splitlines()[2:]] == [
        "|- x",
        "|- lin",
        "|- rel",
        "|- add",
        "`- rel",
    ]


def test_tree_of_a_torchvision_model(run: Run) -> None:
    """``torchvision.models:resnet18`` works as it is written in the documentation."""
    pytest.importorskip("torchvision")
    lines = succeeds(run("torchvision.models:resnet18", "--input", "1x3x224x224"))
    assert lines[0] == (
        "ResNet (torchvision.models:resnet18)  70 nodes  eval mode  input 1x3x224x224  "
        "11,689,512 parameters"
    )
    assert line_with(lines, "conv1", "Conv2d", "1x64x112x112").split()[-2:] == ["float32", "9,408"]
    assert line_with(lines, "layer4").split()[-1] == "8,393,728"
    assert line_with(lines, "fc", "Linear", "1x1000", "float32", "513,000")


def test_shapes(run: Run) -> None:
    """With an input each line has shape, dtype and parameters, whatever kind of value it is."""
    lines = succeeds(run("net:Net", "--input", "2x5x4"))
    assert lines[2].split() == ["shape", "dtype", "parameters"]
    assert line_with(lines, "shift", "parameter", "4", "float32", "4")
    assert line_with(lines, "blocks", "(Sequential)", "40")
    assert line_with(lines, "stubborn", "Stubborn", "2x5x4", "float32", "20", "[auto")
    assert line_with(lines, "attn", "MultiheadAttention", "(2x5x4,", "2x5x5)", "float32", "80")
    assert line_with(lines, "argmax", "2x5", "int64", "0")
    assert line_with(lines, "getattr", "=", "(2,", "5,", "4)", "Size", "0")
    assert line_with(lines, "getitem_2", "=", "5", "int", "0")
    assert line_with(lines, "dropout", "0", "[train")
    ends = [line.index("parameters") + len("parameters") for line in lines[2:3]]
    assert {len(line_with(lines, name)) for name in ("x", "shift", "argmax")} == set(ends)


def test_shapes_of_a_huge_input(run: Run) -> None:
    """Nothing is allocated for shapes: the model runs on the meta device."""
    lines = succeeds(run("net:Block", "--input", "100000000x100000x4"))
    assert line_with(lines, "lin", "Linear", "100000000x100000x4", "float32", "20")


def test_shapes_without_the_meta_device(run: Run) -> None:
    """A model that cannot run without values is run with values."""
    assert line_with(succeeds(run("net:Loose", "--input", "1x4")), "mul", "1x4", "float32", "0")


def test_several_inputs(run: Run) -> None:
    """Inputs are positional and have dtypes; integers stay in the range of every embedding."""
    argv = ["net:Tokens", "--input", "50x3:int64", "--input", "1:float64"]
    assert line_with(succeeds(run(*argv)), "mul", "50x3x4", "float64", "0")
    row = line_with(succeeds(run(*argv, "--nodes", "ids")), "ids").split()
    assert (row[2], row[-2:]) == ("int64", ["0", "2"])


@pytest.mark.parametrize(
    ("mode", "nodes", "relu_1"), [("--eval", 3, ["relu_1", "ReLU"]), ("--train", 2, ["relu_1"])]
)
def test_modes(run: Run, mode: str, nodes: int, relu_1: list[str]) -> None:
    """A name says what it is in the mode asked for, and the other mode's names are marked."""
    lines = succeeds(run("net:Swap", mode))
    assert lines[0] == f"Swap (net:Swap)  {nodes} nodes  {mode[2:]} mode"
    assert line_with(lines, "relu_1").strip("└─ ").split() == relu_1
    assert line_with(lines, "relu").endswith("[eval only]")


def test_a_mode_that_cannot_be_listed(run: Run) -> None:
    """The mode that works is listed and the other one explained; asked for itself it is an error."""
    _, out, note = run("net:EvalOnly")
    # Where the hooks backend is there, it serves both modes.
    assert not note or "the hooks backend does. this extractor has no train mode" in note
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["x", "lin"]
    assert lines[-1].startswith("no train mode: torch.fx cannot record EvalOnly.forward at ")
    assert "With --eval it can be listed" in fails(run("net:EvalOnly", "--train"))
    code, out, _ = run("net:EvalOnly", "--input", "1x4", "--nodes", "lin")
    assert code == 0
    assert line_with(out.splitlines(), "lin")


@pytest.mark.parametrize(
    ("argv", "first_line"),
    [
        (("net:Block", "--arg", "8"), "Block (net:Block)  5 nodes  eval mode  input 1x8"),
        (("net:Block", "--arg", "width=8"), "Block (net:Block)  5 nodes  eval mode  input 1x8"),
        (("net:ready",), "Block (net:ready)  5 nodes  eval mode  input 1x4"),
        (("torch.nn:Linear", "--arg", "4", "--arg", "2", "--arg", "bias=False"), "Linear (torch"),
        (("net:make", "--arg", "Block"), "Block (net:make)  5 nodes"),
        (("net:make", "--arg", "what='Block'", "--weights", "W"), "Block (net:make)  5 nodes"),
    ],
)
def test_factories(run: Run, argv: tuple[str, ...], first_line: str) -> None:
    """A class, a factory or a model; arguments are literals where they can be read as such."""
    shape = "1x8" if "8" in " ".join(argv) else "1x4"
    assert succeeds(run(*argv, "--input", shape))[0].startswith(first_line)


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


# -- errors ---------------------------------------------------------------------------------------

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


# -- the process ----------------------------------------------------------------------------------


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows examples."""
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "featuretap torchvision.models:resnet18\n" in capsys.readouterr().out


def test_fallback_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    """The warning that another backend serves is one line, once; others stay warnings."""
    with warnings.catch_warnings(record=True) as others, notes_on_fallback():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("the hooks backend\ndoes it", FallbackWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(other.message) for other in others] == ["something else"]
    assert capsys.readouterr().err == "featuretap: note: the hooks backend does it\n"


def test_as_a_program(tmp_path: Path) -> None:
    """``python -m featuretap`` prints the tree of a model in the current directory."""
    (tmp_path / "net.py").write_text(NETWORK)
    command = [sys.executable, "-X", "utf8", "-m", "featuretap", "net:Net"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf8", check=True)
    assert done.stdout.startswith(TREE)
    assert done.stderr == ""


def test_a_reader_that_stops(tmp_path: Path) -> None:
    """A closed pipe, as after ``| head``, ends the program without a word."""
    (tmp_path / "net.py").write_text(NETWORK)
    command = [sys.executable, "-m", "featuretap", "net:Net"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.close()  # type: ignore[union-attr]
        assert process.stderr.read() == b""  # type: ignore[union-attr]
    assert process.returncode == 1
