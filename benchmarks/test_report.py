"""The report is written from what the benchmarks leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .report import main
from .timing import summary

PEERS = [
    {"name": "truncated", "target": 1.02, **summary([2.0, 2.0, 2.0], [4.0, 2.0, 1.0])},
    {"name": "torchvision", "target": None, **summary([2.0, 2.0, 2.0], [8.0])},
]
RESULTS: dict[str, Any] = {
    "datetime": "2026-01-02T03:04:05+00:00",
    "machine_info": {
        "cpu": {"brand_raw": "A Processor", "count": 2},
        "python_version": "3.12.0",
        "versions": {"torch": "2.0", "torchvision": "0.15"},
    },
    "benchmarks": [
        {
            "extra_info": {
                "topic": topic,
                "case": "resnet18",
                "unit": "s",
                "median": 2.0,
                "rounds": 3,
                "peers": PEERS,
                **more,
            }
        }
        for topic, more in {"Forward": {}, "Overview": {}, "Listing": {"nodes": 300}}.items()
    ],
}


@pytest.mark.parametrize(("target", "met"), [(1.02, "yes"), (0.9, "**no**")])
def test_each_case_is_one_row(tmp_path: Path, target: float, met: str) -> None:
    """A row has both medians, their ratio with its quartiles, and whether the target is met."""
    PEERS[0]["target"] = target
    text = written(tmp_path)["RESULTS.md"]
    assert "on 2026-01-02: A Processor, 2 cores; Python 3.12.0, torch 2.0, torchvision 0.15" in text
    assert (
        "| resnet18 | 2000.00 ms | truncated, 2000.00 ms | 1.000 | 1.000 [0.500, 2.000] "
        f"| {target:.2f} | {met} | torchvision 0.250 |"
    ) in text


def test_what_was_written_by_hand_is_kept(tmp_path: Path) -> None:
    """Only what stands between the marks of the README changes there, and not the versions."""
    (tmp_path / "README.md").write_text(
        "before\n<!-- measured: a remark -->\nold\n<!-- /measured -->\nafter\n"
    )
    first = written(tmp_path)["RESULTS.md"]
    (tmp_path / "RESULTS.md").write_text(
        first.replace("<!-- /versions -->", "| 2.0 | fx | cpu | 1 |\n<!-- /versions -->")
    )
    texts = written(tmp_path)
    assert texts["RESULTS.md"].count("| 2.0 | fx | cpu | 1 |\n<!-- /versions -->\n") == 1
    assert texts == written(tmp_path)
    readme = texts["README.md"]
    assert readme.startswith("before\n<!-- measured: a remark -->\n")
    assert readme.endswith("<!-- /measured -->\nafter\n")
    assert "old" not in readme
    assert "| yardstick | 1 (2000.00 ms) |" in readme
    assert "| **featuretap** | 1.00 |" in readme
    assert "| torchvision | 4.00 |" in readme


def test_a_table_that_was_not_taken_again_is_kept(tmp_path: Path) -> None:
    """It stays in its place, with the machine that it was taken on."""
    first = written(tmp_path)["RESULTS.md"]
    kept = "## CUDA\n\nMeasured on 2025-01-01: a GPU.\n\n| a | b |\n\n"
    (tmp_path / "RESULTS.md").write_text(first.replace("<!-- versions", f"{kept}<!-- versions"))
    text = written(tmp_path)["RESULTS.md"]
    assert text == first.replace("<!-- versions", f"{kept}<!-- versions")
    assert text.count("on 2026-01-02") == len(RESULTS["benchmarks"])


def test_the_plot_has_a_line_for_each(tmp_path: Path) -> None:
    """It is well formed, and the report shows it."""
    texts = written(tmp_path)
    assert "(listing.svg)" in texts["RESULTS.md"]
    svg = ElementTree.fromstring(texts["listing.svg"])
    assert len(svg.findall("{http://www.w3.org/2000/svg}polyline")) == 1 + len(PEERS)


def written(folder: Path) -> dict[str, str]:
    """Write the report into ``folder``; return what is there then."""
    results = folder / "results.json"
    results.write_text(json.dumps(RESULTS))
    files = {"--output": folder / "RESULTS.md", "--readme": folder / "README.md"}
    main([str(results), *(str(part) for option in files.items() for part in option)])
    return {path.name: path.read_text() for path in folder.iterdir()}
