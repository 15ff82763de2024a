"""Extracted features as a table of statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .text import align
from .values import dtype_text, is_plain, leaves, shape_text

if TYPE_CHECKING:
    from .arguments import Arguments

__all__ = ["table_lines"]

_HEADER = ("node", "shape", "dtype", "mean", "std", "min", "max")
_NO_STATISTICS = ("-", "-", "-", "-")


def table_lines(values: Mapping[str, Any], class_name: str, args: Arguments) -> list[str]:
    """Return the lines to print: a headline, and one row for each value."""
    rows = [
        (part, shape_text(leaf), dtype_text(leaf), *_statistics(leaf))
        for name, value in values.items()
        for part, leaf in leaves(name or "(output)", value)
    ]
    count = f"{len(values)} {'feature' if len(values) == 1 else 'features'}"
    head = f"{args.headline(class_name, count)}  seed {args.seed}"
    return [head, "", *align([_HEADER, *rows], right={3, 4, 5, 6})]


def _statistics(value: Any) -> tuple[str, ...]:
    """Return mean, standard deviation (of the values, not estimated), least and greatest value."""
    if not isinstance(value, torch.Tensor) or not is_plain(value):
        return _NO_STATISTICS
    if value.is_complex() or value.numel() == 0:
        return _NO_STATISTICS
    # On the CPU, because not every device has float64, which in turn lacks some of int64.
    own = value.detach().cpu()
    wide = own.to(torch.float64)
    exact = own if own.dtype == torch.int64 else wide
    middle = (_number(wide.mean().item()), _number(wide.std(correction=0).item()))
    extremes = (exact.min().item(), exact.max().item())
    if value.is_floating_point():
        return *middle, *map(_number, extremes)
    return *middle, *(str(int(extreme)) for extreme in extremes)


def _number(value: float) -> str:
    """Write a number so that decimal points stand in line, and none is lost in zeros.

    >>> _number(-0.25), _number(1.25e-7), _number(0.0)
    ('-0.2500', '1.25e-07', '0.0000')
    """
    usual = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.4f}" if usual else f"{value:.2e}"
