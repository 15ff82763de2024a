"""Importing featuretap, beyond importing torch, each time in a fresh interpreter."""

from __future__ import annotations

import random
import subprocess
import sys

from .timing import Benchmark, note

TARGET = 1.05

SCRIPT = """
import sys, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
__import__(sys.argv[1])
print(middle - start, time.perf_counter() - middle)
"""


def import_seconds(module: str) -> tuple[float, float]:
    """Return how long ``import torch`` takes, and how much longer importing ``module`` after it."""
    command = [sys.executable, "-c", SCRIPT, module]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(answer[0]), float(answer[1])


def test_import(benchmark: Benchmark, quick: bool) -> None:
    """A program that imports torch anyway hardly notices featuretap."""
    modules = ["featuretap"] if quick else ["featuretap", "torchvision.models.feature_extraction"]
    samples: dict[str, list[tuple[float, float]]] = {module: [] for module in modules}
    if not quick:
        for module in modules:
            import_seconds(module)  # compiled files and the disk's cache are in place from here on

    def all_in_turns() -> None:
        for module in random.sample(modules, len(modules)):
            samples[module].append(import_seconds(module))

    benchmark.pedantic(all_in_turns, rounds=1 if quick else 9)
    if not quick:
        ours, theirs = samples.values()
        peers = {
            "torch alone": [torch for torch, _ in ours],
            "torch and torchvision's tool": [torch + more for torch, more in theirs],
        }
        both = [torch + more for torch, more in ours]
        note(benchmark, "Import", "torch and featuretap", both, peers, {"torch alone": TARGET})
