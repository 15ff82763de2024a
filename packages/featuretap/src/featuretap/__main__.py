"""The ``featuretap`` command: ``python -m featuretap torchvision.models:resnet18``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .cli.arguments import Arguments, parse
from .cli.features import extract, survey
from .cli.inputs import make_inputs
from .cli.loading import load_model
from .cli.saving import check_target, save
from .cli.table import table_lines
from .cli.text import CommandError, notes_on_fallback, one_line
from .cli.tree import tree_lines

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line on stderr."""
    try:
        with notes_on_fallback():
            lines = _run(parse(argv))
        print("\n".join(lines), flush=True)
    except CommandError as error:
        print(f"featuretap: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (``| head``) has enough. Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _run(args: Arguments) -> list[str]:
    if args.save is not None:
        check_target(args.save)
    model = load_model(args)
    if not args.nodes:
        return tree_lines(survey(model, args), args)
    values = extract(model, make_inputs(args, model), args)
    lines = table_lines(values, type(model).__name__, args)
    if args.save is not None:
        lines += ["", save(values, args.save)]
    return lines


if __name__ == "__main__":
    sys.exit(main())
