"""Print what a branch costs beside its base: ``compare_benchmarks.py base.json head.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def ratios(path: str) -> dict[tuple[str, str], float]:
    """Return the ratio to the first peer of every case in the results of one benchmark run."""
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    cases = [bench["extra_info"] for bench in results["benchmarks"]]
    return {
        (case["topic"], case["case"]): case["peers"][0]["ratio"]
        for case in cases
        if case and case["peers"]
    }


def main(base: str, head: str) -> None:
    """Print one line for each case; those that moved by more than a tenth stand out."""
    before, after = ratios(base), ratios(head)
    print("Ours divided by the first peer, on the base branch and on this one.\n")
    print("| Topic | Case | Base | Here | Change |\n| --- | --- | ---: | ---: | ---: |")
    for (topic, case), here in after.items():
        there = before.get((topic, case))
        if there is None:
            print(f"| {topic} | {case} | | {here:.3f} | new |")
            continue
        change = f"{here / there - 1:+.1%}"
        if abs(here / there - 1) > 0.1:
            change = f"**{change}**"
        print(f"| {topic} | {case} | {there:.3f} | {here:.3f} | {change} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
