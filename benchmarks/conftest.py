"""Options and fixtures of the benchmarks, which in the ordinary test run do everything once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch

PACKAGES = "torch torchvision timm torchextractor surgeon-pytorch nnsight torchlens".split()


def pytest_addoption(parser: pytest.Parser) -> None:
    # In "pytest tests benchmarks" the tests have declared the same option already.
    with contextlib.suppress(ValueError):
        parser.addoption(
            "--device",
            action="append",
            default=[],
            help="where the benchmarks of forward and memory run (default: cpu)",
        )


def _device(config: pytest.Config) -> str:
    """Return the last device asked for: numbers of two devices do not belong in one table."""
    return str(["cpu", *config.getoption("--device")][-1])


def _installed(packages: list[str]) -> Iterator[tuple[str, str]]:
    """Find the versions of those that are here: not every table needs every peer."""
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            yield package, version(package)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Put into the results what the report says about the machine."""
    device = _device(config)
    machine_info["versions"] = dict(_installed(PACKAGES))
    machine_info["device"] = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    )


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where models and inputs live."""
    return _device(request.config)


@pytest.fixture
def quick(benchmark: Any) -> bool:
    """Whether nothing is timed, so that sizes may be small."""
    return bool(benchmark.disabled)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
