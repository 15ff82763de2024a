"""Write ``RESULTS.md`` from the JSON of a benchmark run.

Usage::

    pytest benchmarks --benchmark-enable --benchmark-json=results.json
    python benchmarks/report.py results.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOPICS = {
    "Listing": "`get_graph_node_names`, beside one `torch.fx.Tracer().trace(model)`.",
    "Creating": (
        "`create_feature_extractor` for three nodes (early, middle, late), beside one "
        "`torch.fx.Tracer().trace(model)`."
    ),
    "Forward": (
        "The extractor's forward (eval mode, no gradients, one thread), beside the truncated model "
        "written by hand. The forward hook runs the whole model."
    ),
    "Memory": "Most bytes of tensors alive at one moment of the forward, weights not counted.",
    "Import": "`import torch` and then `import featuretap`, beside `import torch`.",
}

HEADER = "Case|Ours|Beside|Ratio|Within rounds|Target|Met|Ratio to others".split("|")

INTRODUCTION = """\
Each ratio is our time (or memory) divided by the peer's; below 1 we are cheaper. In each round we
and every peer took one turn, in random order. *Ratio* is that of the medians over all rounds, and
is what the target is for. *Within rounds* are the ratios of single rounds: their median, and in
brackets their quartiles. The last column only shows what other ways cost.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the results named on the command line, and write the table."""
    parser = argparse.ArgumentParser(
        description="Write RESULTS.md from the JSON of pytest-benchmark."
    )
    parser.add_argument("results", type=Path, help="file written by --benchmark-json")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8"))
    options.output.write_text(report(results), encoding="utf-8")


def report(results: Mapping[str, Any]) -> str:
    """Return the whole report as markdown."""
    cases = [bench["extra_info"] for bench in results["benchmarks"] if bench["extra_info"]]
    parts = ["# What featuretap costs", machine(results), INTRODUCTION.rstrip()]
    for topic, explanation in TOPICS.items():
        rows = [row(case) for case in cases if case["topic"] == topic]
        if rows:
            parts += [f"## {topic}", explanation, table(HEADER, rows)]
    return "\n\n".join(parts) + "\n"


def machine(results: Mapping[str, Any]) -> str:
    """Say where and when the numbers were taken."""
    info = results["machine_info"]
    cpu = info.get("cpu", {})
    device = (
        "" if info.get("device", "cpu") == "cpu" else f"; forward and memory on {info['device']}"
    )
    return (
        f"Measured on {results['datetime'][:10]}: {cpu.get('brand_raw', 'unknown CPU')}, "
        f"{cpu.get('count', '?')} cores{device}; Python {info['python_version']}, "
        f"torch {info.get('torch', '?')}, torchvision {info.get('torchvision', '?')}."
    )


def row(case: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one case: the first peer in full, the others by their ratio."""
    first, *others = case["peers"]
    target = first["target"]
    met = "" if target is None else ("yes" if first["ratio"] <= target else "**no**")
    return (
        case["case"],
        amount(case["median"], case["unit"]),
        f"{first['name']}, {amount(first['median'], case['unit'])}",
        f"{first['ratio']:.3f}",
        spread(first),
        "" if target is None else f"{target:.2f}",
        met,
        "; ".join(f"{peer['name']} {peer['ratio']:.3f}" for peer in others),
    )


def spread(peer: Mapping[str, Any]) -> str:
    """Write the median and the quartiles of the ratios within a round, if there are enough."""
    if peer["quartiles"] is None:
        return ""
    lower, median, upper = peer["quartiles"]
    return f"{median:.3f} [{lower:.3f}, {upper:.3f}]"


def amount(value: float, unit: str) -> str:
    """Write seconds as milliseconds, and bytes as mebibytes."""
    return f"{value / 2**20:.2f} MiB" if unit == "B" else f"{value * 1e3:.2f} ms"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
