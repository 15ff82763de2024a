"""The report is written from what the benchmarks leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .report import main
from .timing import summary

PEERS = [
    {"name": "truncated", "target": 1.02, **summary([2.0, 2.0, 2.0], [4.0, 2.0, 1.0])},
    {"name": "torchvision", "target": None, **summary([2.0, 2.0, 2.0], [8.0])},
]
RESULTS = {
    "datetime": "2026-01-02T03:04:05+00:00",
    "machine_info": {
        "cpu": {"brand_raw": "A Processor", "count": 2},
        "python_version": "3.12.0",
        "torch": "2.0",
        "torchvision": "0.15",
    },
    "benchmarks": [
        {
            "extra_info": {
                "topic": "Forward",
                "case": "resnet18",
                "unit": "s",
                "median": 2.0,
                "rounds": 3,
                "peers": PEERS,
            }
        }
    ],
}


@pytest.mark.parametrize(("target", "met"), [(1.02, "yes"), (0.9, "**no**")])
def test_each_case_is_one_row(tmp_path: Path, target: float, met: str) -> None:
    """A row has both medians, their ratio with its quartiles, and whether the target is met."""
    PEERS[0]["target"] = target
    results, output = tmp_path / "results.json", tmp_path / "RESULTS.md"
    results.write_text(json.dumps(RESULTS))
    main([str(results), "--output", str(output)])
    text = output.read_text()
    assert "Measured on 2026-01-02: A Processor, 2 cores; Python 3.12.0, torch 2.0" in text
    assert (
        "| resnet18 | 2000.00 ms | truncated, 2000.00 ms | 1.000 | 1.000 [0.500, 2.000] "
        f"| {target:.2f} | {met} | torchvision 0.250 |"
    ) in text
