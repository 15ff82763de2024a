"""Write ``RESULTS.md``, its plot and the table of the README from the JSON of benchmark runs.

Usage::

    pytest benchmarks --benchmark-enable --benchmark-json=results.json
    python benchmarks/report.py results.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# As a script and as a module of the package, for its tests.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.plot import log_log

Case = Mapping[str, Any]

OVERVIEW = "Overview"
TOPICS = {
    OVERVIEW: (
        "The same tasks with every tool, on timm's resnet50 at 224 x 224; the README shows each tool's "
        "ratio to what *Beside* names."
    ),
    "Listing": "`get_graph_node_names`, beside one `torch.fx.Tracer().trace(model)`.",
    "Creating": (
        "`create_feature_extractor` for three nodes (early, middle, late), beside one "
        "`torch.fx.Tracer().trace(model)`."
    ),
    "Forward": (
        "The fx extractor's forward (eval mode, no gradients, one thread), beside the truncated "
        "model written by hand. The forward hook runs the whole model."
    ),
    "Hooks": (
        "The hooks extractor's forward, beside plain forward hooks, the truncated model, or the "
        "model alone."
    ),
    "CUDA": (
        "Forward to the middle of the model on a GPU, beside the truncated model. In every row the "
        "CPU waited for the GPU no oftener than with the truncated model, as counted by "
        '`torch.cuda.set_sync_debug_mode("warn")`.'
    ),
    "Memory": (
        "Most bytes of tensors alive at one moment of the forward, weights not counted. Hooks run the "
        "real forward, whose functions may hold more than a model cut by hand."
    ),
    "Import": "`import torch` and then `import featuretap`, beside `import torch`.",
}

HEADER = "Case|Ours|Beside|Ratio|Within rounds|Target|Met|Ratio to others".split("|")

INTRODUCTION = """\
Each ratio is our time (or memory) divided by the peer's; below 1 we are cheaper. In each round we
and every peer took one turn, in random order. *Ratio* is that of the medians over all rounds, and
is what the target is for. *Within rounds* are the ratios of single rounds: their median, and in
brackets their quartiles. The last column only shows what other ways cost.
"""

VERSIONS = """\
<!-- versions: written by hand; report.py keeps it -->
## Versions

| torch | backend | device | passed |
| --- | --- | --- | --- |
<!-- /versions -->
"""

README_CAPTION = """\
timm's resnet50 at 224 x 224 on one CPU thread, times as multiples of the first row: one bare
`torch.fx` trace for listing and creating (what does not trace can take less), the model cut by
hand for features, the whole model for every operation. All took turns, and their values were
asserted equal (of torchlens, the model's output). `featuretap-hooks` lists by running the model in
both modes. Empty cells: not offered, or not comparable.
"""

README_END = """\
\\* Some of the values are wrong: a later in-place ReLU has overwritten them.

[All results](benchmarks/RESULTS.md), with spread, other models, memory, import time, and a
[plot of the time to list](benchmarks/listing.svg) up to 12,000 nodes. `nox -s benchmark` takes
them again.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the results named on the command line, and write what follows from them."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="written by --benchmark-json")
    parser.add_argument("--output", type=Path, default=here / "RESULTS.md")
    parser.add_argument("--readme", type=Path, default=here.parent / "README.md")
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    old = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    options.output.write_text(report(runs, old), encoding="utf-8")
    cases = cases_of(runs)
    if any("nodes" in case for case in cases):
        options.output.with_name("listing.svg").write_text(plot(cases), encoding="utf-8")
    compared = [case for case in cases if case["topic"] == OVERVIEW]
    if compared and options.readme.exists():
        readme = options.readme.read_text(encoding="utf-8")
        parts = (README_CAPTION, overview(compared) + "\n", README_END)
        shown = between("measured").sub(
            lambda found: f"{found[1]}\n" + "\n".join(parts) + found[2], readme
        )
        options.readme.write_text(shown, encoding="utf-8")


def between(name: str) -> re.Pattern[str]:
    """Match what two comments of that name enclose; both are groups."""
    return re.compile(rf"(<!-- {name}\b[^>]*-->\n).*?(<!-- /{name} -->\n?)", re.DOTALL)


def cases_of(runs: Iterable[Mapping[str, Any]]) -> list[Case]:
    """Return all cases that were measured."""
    found = [bench["extra_info"] for run in runs for bench in run["benchmarks"]]
    return [case for case in found if "peers" in case]


def report(runs: Sequence[Mapping[str, Any]], old: str = "") -> str:
    """Return the whole report as markdown.

    What was written by hand, and the tables that nobody has taken again, are those of the old one.
    """
    cases = cases_of(runs)
    parts = ["# What featuretap costs", INTRODUCTION.rstrip()]
    for topic, explanation in TOPICS.items():
        rows = [row(case) for case in cases if case["topic"] == topic]
        if rows:
            machines = dict.fromkeys(machine(run) for run in runs if topic in topics_of(run))
            parts += [f"## {topic}", explanation, *machines, table(HEADER, rows)]
        elif kept := section(topic).search(old):
            parts.append(kept[0].rstrip())
        if rows and any("nodes" in case for case in cases if case["topic"] == topic):
            parts.append("![Time to list against number of nodes](listing.svg)")
    by_hand = between("versions").search(old)
    return "\n\n".join([*parts, by_hand[0] if by_hand else VERSIONS])


def section(topic: str) -> re.Pattern[str]:
    """Match what stands under the heading of a topic, up to the next one or to what is by hand."""
    return re.compile(rf"^## {topic}\n.*?(?=^## |^<!-- |\Z)", re.DOTALL | re.MULTILINE)


def topics_of(run: Mapping[str, Any]) -> set[str]:
    """Return what a run has measured."""
    return {case["topic"] for case in cases_of([run])}


def plot(cases: Iterable[Case]) -> str:
    """Draw the time to list against the number of nodes."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if "nodes" in case:
            lines.setdefault("featuretap", []).append((case["nodes"], case["median"] * 1e3))
            for peer in case["peers"]:
                if not peer["name"].endswith("nodes"):
                    point = (case["nodes"], peer["median"] * 1e3)
                    lines.setdefault(peer["name"], []).append(point)
    return log_log("Time to list all nodes of a chain", "nodes", "ms", lines)


def overview(cases: Sequence[Case]) -> str:
    """Return one row a tool and one column a task: its ratio to the first peer."""
    columns = [
        {"featuretap": case["median"], **{peer["name"]: peer["median"] for peer in case["peers"]}}
        for case in cases
    ]
    firsts = [(case["peers"][0], case["unit"]) for case in cases]
    names = {name: None for column in sorted(columns, key=len, reverse=True) for name in column}
    tools = [name for name in names if all(name != first["name"] for first, _ in firsts)]
    rows = [["yardstick", *(f"1 ({amount(first['median'], unit)})" for first, unit in firsts)]]
    for tool in tools:
        cells = [
            times(column[tool] / first["median"]) if tool in column else ""
            for column, (first, _) in zip(columns, firsts, strict=True)
        ]
        # The benchmark checks the values, and that these are overwritten.
        if tool == "torchvision":
            wrong = [case["case"] == "every operation" for case in cases]
            cells = [f"{cell} \\*" if bad else cell for cell, bad in zip(cells, wrong, strict=True)]
        rows.append([f"**{tool}**" if tool.startswith("featuretap") else tool, *cells])
    return table(["", *(case["case"] for case in cases)], rows)


def times(ratio: float) -> str:
    """Write a ratio, with two places where they matter."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def machine(results: Mapping[str, Any]) -> str:
    """Say where and when the numbers were taken."""
    info = results["machine_info"]
    cpu = info.get("cpu", {})
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    device = "" if info.get("device", "cpu") == "cpu" else f", one {info['device']}"
    return (
        f"Measured on {results['datetime'][:10]}: {cpu.get('brand_raw', 'unknown CPU')}, "
        f"{cpu.get('count', '?')} cores{device}; Python {info['python_version']}, {versions}."
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
