"""Inputs of a model from a description of their shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import nearest
from .text import CommandError, describe, did_you_mean

if TYPE_CHECKING:
    from .arguments import Arguments

__all__ = ["InputSpec", "make_inputs", "parse_input"]

_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.complex64, torch.complex128, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
_INTEGERS_BELOW = 10


@dataclass(frozen=True)
class InputSpec:
    """The shape and dtype of one positional input."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            shape if self.dtype == torch.float32 else f"{shape}:{self.dtype}".replace("torch.", "")
        )

    def draw(self, generator: torch.Generator, integers_below: int) -> torch.Tensor:
        """Draw values on the CPU: normal ones, or integers from 0."""
        if self.dtype.is_floating_point or self.dtype.is_complex:
            wide = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=wide).to(self.dtype)
        high = 2 if self.dtype == torch.bool else integers_below
        return torch.randint(high, self.shape, generator=generator).to(self.dtype)


def parse_input(text: str) -> InputSpec:
    """Read what ``--input`` says.

    Raises:
        CommandError: if it is no shape, or names no dtype.

    >>> str(parse_input("1x16:int64")), parse_input("1x3x224x224").shape
    ('1x16:int64', (1, 3, 224, 224))

    """
    shape, colon, dtype = text.partition(":")
    if not _SHAPE.fullmatch(shape):
        guess = "x".join(re.findall("[0-9]+", shape))
        hint = did_you_mean(
            [f"--input {guess}{colon}{dtype}"] if guess and "-" not in shape else []
        )
        raise CommandError(
            f"--input {text!r} is no shape.{hint} "
            "Write the sizes with x between them, as 1x3x224x224, and :dtype after them if need be"
        )
    if colon and dtype not in _DTYPES:
        hint = did_you_mean([f"--input {shape}:{name}" for name in nearest(dtype, _DTYPES, 1)])
        raise CommandError(
            f"--input {text!r} has an unknown dtype.{hint} There is {', '.join(_DTYPES)}"
        )
    return InputSpec(tuple(map(int, shape.split("x"))), _DTYPES[dtype or "float32"])


def make_inputs(args: Arguments, model: nn.Module) -> tuple[torch.Tensor, ...]:
    """Draw the inputs that ``args`` describes; integers stay in the range of every embedding."""
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    integers_below = min([_INTEGERS_BELOW, *(table.num_embeddings for table in tables)])
    generator = torch.Generator().manual_seed(args.seed)
    try:
        drawn = [spec.draw(generator, integers_below) for spec in args.inputs]
        return tuple(value.to(args.device) for value in drawn)
    except RuntimeError as error:
        shapes = " ".join(map(str, args.inputs))
        raise CommandError(
            f"--input {shapes} cannot be made on {args.device}: {describe(error)}. Make it smaller"
        ) from error
