"""What may be written on the command line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import NoReturn

import torch

from ..backends import load_backend
from .inputs import InputSpec, parse_input
from .text import CommandError, did_you_mean

__all__ = ["Arguments", "parse"]

_EXAMPLES = """\
examples:
  featuretap torchvision.models:resnet18
  featuretap torchvision.models:resnet18 --input 1x3x224x224
  featuretap torchvision.models:resnet18 --input 1x3x224x224 --nodes "layer*.*.relu" --save out.npz
  featuretap timm:create_model --arg resnet18 --arg num_classes=10
  featuretap my_package.net:Net --input 1x16:int64
"""


class Arguments(argparse.Namespace):
    """The arguments of one command, checked one by one."""

    model: str
    inputs: list[InputSpec]
    nodes: list[str]
    save: str | None
    weights: str | None
    values: list[str]
    mode: str
    device: torch.device
    seed: int
    backend: str

    def headline(self, class_name: str, count: str) -> str:
        """Return the first line of the output: what was looked at, and how."""
        parts = [f"{class_name} ({self.model})", count, f"{self.mode} mode"]
        if self.inputs:
            parts.append(f"input {' '.join(map(str, self.inputs))}")
        return "  ".join(parts)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; featuretap --help shows the ways to call it")


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """Read the command line.

    Args:
        argv: the words after the command's name, by default those of this process.

    Raises:
        CommandError: if they cannot be understood.

    """
    parser = _parser()
    args, unknown = parser.parse_known_args(argv, namespace=Arguments())
    if unknown:
        options = re.findall(r"--[a-z]+", parser.format_usage())
        hint = did_you_mean(difflib.get_close_matches(unknown[0], options, n=1))
        raise CommandError(f"there is no argument {unknown[0]!r}.{hint} See featuretap --help")
    args.nodes = _split(args.nodes)
    if args.nodes and not args.inputs:
        parser.error("--nodes needs --input, for example --input 1x3x224x224")
    if args.nodes and args.device.type == "meta":
        parser.error("--nodes needs values, and the meta device has none: choose another --device")
    if args.save is not None and not args.nodes:
        parser.error("--save needs --nodes, which says what to save")
    return args


def _parser() -> _Parser:
    parser = _Parser(
        prog="featuretap",
        description="Print the nodes of a PyTorch model as a tree, or extract some of them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODULE:NAME",
        help="a factory, a class or a model; where to import it from",
    )
    add("--input", dest="inputs", metavar="SHAPE[:DTYPE]", type=parse_input, action="append",
        default=[], help="shape of a positional input, as 1x3x224x224 or 1x16:int64; adds shape, "
        "dtype and parameters to the tree (repeatable)")  # fmt: skip
    add("--nodes", metavar="NAME", action="append", default=[],
        help="extract these nodes and print statistics of each: names, globs, paths of modules, '' "
        "for the model's output (repeatable, or separated by commas)")  # fmt: skip
    add("--save", metavar="FILE", help="write what was extracted to FILE.safetensors or FILE.npz")
    add("--weights", metavar="NAME", help="passed to the factory as weights=NAME")
    add("--arg", dest="values", metavar="[KEY=]VALUE", action="append", default=[],
        help="an argument for the factory: a Python literal or a string (repeatable)")  # fmt: skip
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--eval", dest="mode", action="store_const", const="eval", default="eval",
                       help="use the model in eval mode (the default)")  # fmt: skip
    modes.add_argument("--train", dest="mode", action="store_const", const="train",
                       help="use the model in train mode")  # fmt: skip
    add("--device", type=_device, default="cpu", help="where the model runs (default: cpu)")
    add("--seed", type=_seed, default=0, help="torch.manual_seed of the weights, of the inputs "
        "(normal; integers from 0 to 9) and of the forward, each by itself (default: 0)")  # fmt: skip
    add("--backend", type=_backend, default="auto", help="auto, fx, hooks (default: auto)")
    return parser


def _split(nodes: Sequence[str]) -> list[str]:
    """Split at commas; an empty name, the model's output, has to be an argument of its own."""
    names: list[str] = []
    for text in nodes:
        parts = [part.strip() for part in text.split(",")]
        found = [part for part in parts if part] or ([""] if len(parts) == 1 else [])
        if not found:
            raise CommandError(
                f"--nodes {text!r} names no node. Write names between the commas, or --nodes '' for the "
                "model's output"
            )
        names += found
    return names


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise CommandError(
            f"--device {text!r} is no device of torch; write cpu, cuda, cuda:1 or mps"
        ) from error


def _seed(text: str) -> int:
    try:
        seed = int(text)
        torch.Generator().manual_seed(seed)
    except (ValueError, OverflowError, RuntimeError) as error:
        raise CommandError(
            f"--seed {text!r} is no 64-bit integer; write a number like 0"
        ) from error
    return seed


def _backend(text: str) -> str:
    try:
        if text != "auto":
            load_backend(text)
    except (ValueError, ImportError) as error:
        raise CommandError(f"--backend: {error}") from error
    return text
