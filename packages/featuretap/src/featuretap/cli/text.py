"""How the command speaks: one error line, notes, aligned columns."""

from __future__ import annotations

import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from ..errors import FallbackWarning

__all__ = [
    "CommandError",
    "align",
    "describe",
    "did_you_mean",
    "note",
    "notes_on_fallback",
    "one_line",
    "signature_text",
]

_LONGEST_CAUSE = 400


class CommandError(Exception):
    """What was asked cannot be done; its text is all that the user sees."""


def one_line(text: str) -> str:
    """Return ``text`` with every run of white space, line ends included, as one space."""
    return " ".join(text.split())


def describe(error: BaseException) -> str:
    """Name an exception and what it says, in one line that is not endless."""
    text = one_line(f"{type(error).__name__}: {error}").removesuffix(":")
    return textwrap.shorten(text, _LONGEST_CAUSE, placeholder=" ...")


def did_you_mean(suggestions: Sequence[str]) -> str:
    """Return the question to append to an error, empty if there is nothing to suggest."""
    return f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""


def signature_text(function: Callable[..., object]) -> str:
    """Return what ``function`` takes, without annotations: ``(width, depth=2)``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "arguments that cannot be listed"
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=empty))


def note(text: str) -> None:
    """Tell the user something that is no part of the result."""
    print(f"featuretap: note: {one_line(text)}", file=sys.stderr)


@contextmanager
def notes_on_fallback() -> Iterator[None]:
    """Print a :class:`FallbackWarning` as a note, once; other warnings stay as they are."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", FallbackWarning)
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, FallbackWarning):
                show_others(message, category, filename, lineno, file, line)
            elif str(message) not in said:
                said.add(str(message))
                note(str(message))

        warnings.showwarning = show
        yield


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lay ``rows`` out in columns two spaces apart.

    Args:
        rows: the cells; all rows have the same number of them.
        right: indices of the columns that are aligned at the right.

    >>> align([["node", "mean"], ["relu_1", "0.5"]], right={1})
    ['node    mean', 'relu_1   0.5']

    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            if width
        ).rstrip()
        for row in rows
    ]
