"""Backends and devices: every conformance test runs on each that is here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import featuretap
from featuretap.backends import available_backends
from zoo import ZOO


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        default=[],
        help="devices to run on (default: cpu, and cuda if there)",
    )
    parser.addoption(
        "--backend", action="append", default=[], help="backends to run on (default: all installed)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    if "backend" in metafunc.fixturenames:
        names = config.getoption("backend") or available_backends()
        metafunc.parametrize("backend", names, scope="session")
    if "device" in metafunc.fixturenames:
        cuda = ["cuda"] if torch.cuda.is_available() else []
        names = config.getoption("device") or ["cpu", *cuda]
        if "cuda" in names and not cuda:
            raise pytest.UsageError("--device cuda was asked for, but there is no CUDA device")
        metafunc.parametrize("device", names, scope="session")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Put the traps that a model of the zoo is about into the name of the test."""
    if argname != "name" or val not in ZOO:
        return None
    traps = re.findall(r"\btrap (\d+)", ZOO[str(val)].__doc__ or "")
    return "-".join([str(val), *(f"trap{number}" for number in traps)])


@pytest.fixture(autouse=True)
def _one_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def extract(backend: str) -> Callable[..., Any]:
    """``create_feature_extractor`` on the backend under test."""

    def create(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return featuretap.create_feature_extractor(model, *args, backend=backend, **kwargs)

    return create


@pytest.fixture
def names_of(backend: str) -> Callable[..., Any]:
    """``get_graph_node_names`` on the backend under test; models of the zoo bring their example."""

    def names(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if hasattr(model, "example"):
            kwargs.setdefault("example_args", model.example())
        return featuretap.get_graph_node_names(model, *args, backend=backend, **kwargs)

    return names
