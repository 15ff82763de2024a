"""Compare all models of a library, print the totals, and write the exceptions to tests/golden.

Run from the repository root: ``python tests/models/totals.py torchvision`` (or ``timm``), with model
names behind it to look at these alone (nothing is written then).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "models")]

from builders import models  # noqa: E402
from comparison import Comparison, compare  # noqa: E402

CAUSES = {
    "corrected": "N5: the digits at the end of the module's name are part of it",
}


def exceptions(results: list[Comparison]) -> list[str]:
    """One line for each name that does not mean what torchvision takes it for."""
    lines = []
    for result in results:
        for name, before in dict.fromkeys(result.corrected):
            lines.append(f"{result.model}\t{name}\ttorchvision: {before}\t{CAUSES['corrected']}")
        for name in dict.fromkeys(result.refused):
            lines.append(f"{result.model}\t{name}\tnot accepted\t")
        if result.untraceable:
            where = Path(result.untraceable).name
            lines.append(
                f"{result.model}\t-\tnot traceable\tE2: the root's own forward branches ({where})"
            )
        for path in result.auto_leaves:
            lines.append(f"{result.model}\t{path}\tauto leaf\tits forward cannot be traced alone")
    return lines


def main() -> None:
    library, *only = sys.argv[1:]
    warnings.simplefilter("ignore")
    results = []
    for name, model, x in models(library, only):
        results.append(compare(name, model, x))
        print(results[-1].row(), flush=True)
    traced = [result for result in results if not result.untraceable]
    print(
        f"{library}: {len(results)} models, {len(traced)} traced "
        f"({sum(result.torchvision_fails for result in results)} of all fail in torchvision's tool), "
        f"{sum(bool(result.auto_leaves) for result in traced)} with auto leaves; "
        f"{sum(result.names for result in results)} names of torchvision, "
        f"{sum(len(result.refused) for result in results)} not accepted, "
        f"{sum(len(result.corrected) for result in results)} corrected; "
        f"{sum(result.values for result in results)} values, "
        f"{sum(len(result.wrong) for result in results)} wrong"
    )
    if not only:
        path = TESTS / "golden" / f"{library}_exceptions.tsv"
        path.write_text("\n".join(["model\tname\twhat\tcause", *exceptions(results)]) + "\n")


if __name__ == "__main__":
    main()
