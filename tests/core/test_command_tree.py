"""The command line: the tree that it prints, and how it behaves as a process."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from command import NETWORK, Run, fails, line_with, succeeds
from featuretap import FallbackWarning
from featuretap.__main__ import main
from featuretap.cli.text import notes_on_fallback

# As in a process of its own, where no default device is set.
pytestmark = pytest.mark.usefixtures("on_the_cpu")


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


@pytest.mark.sees_operations
def test_without_input_hooks_say_that_operations_are_missing(run: Run) -> None:
    """What the real forward alone shows is announced, once."""
    _, _, note = run("net:Net", "--backend", "hooks")
    assert note.count("without --input only modules are listed") == 1
    _, _, note = run("net:Net", "--backend", "hooks", "--input", "2x4")
    assert "without --input" not in note
    _, _, note = run("net:Net", "--backend", "fx")
    assert "without --input" not in note


@pytest.mark.sees_operations
def test_a_model_that_nothing_is_known_of_wants_an_input(run: Run) -> None:
    """There is no name to be had without running it, and it says so."""
    code, _, note = run("torch.nn:Module", "--backend", "hooks")
    assert code == 2
    assert "Module has no modules inside" in note
    assert "give --input" in note
