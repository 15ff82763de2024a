"""Backends and devices: every conformance test runs on each that is here."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
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
        "--backend",
        action="append",
        default=[],
        help="backends to run on (default: fx and hooks; one that is not installed is an error)",
    )


def pytest_configure(config: pytest.Config) -> None:
    # All that a test makes then lives there, what does not take the device as an argument, too.
    if len(config.getoption("device")) == 1:
        torch.set_default_device(config.getoption("device")[0])
    config.addinivalue_line("markers", "only(backend, why): run on this backend alone")
    config.addinivalue_line(
        "markers", "sees_operations: the real values are seen by featuretap-hooks"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs featuretap-hooks where it is not asked for, as on a torch before its own."""
    asked = config.getoption("backend")
    if asked and "hooks" not in asked:
        without = [item for item in items if item.get_closest_marker("sees_operations")]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in set(without)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    if "backend" in metafunc.fixturenames:
        names = config.getoption("backend") or ["fx", "hooks"]
        missing = set(names) - set(available_backends())
        if missing:
            raise pytest.UsageError(
                f"the backend {missing.pop()} was to be tested, but is not here"
            )
        only = metafunc.definition.get_closest_marker("only")
        if only is not None:
            names = [name for name in names if name in only.args]
        metafunc.parametrize("backend", names, scope="session")
    if "device" in metafunc.fixturenames:
        cuda = ["cuda"] if torch.cuda.is_available() else []
        names = config.getoption("device") or ["cpu", *cuda]
        if "cuda" in names and not cuda:
            raise pytest.UsageError("--device cuda was asked for, but there is no CUDA device")
        metafunc.parametrize("device", names, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let no backend or device be left out silently: a conformance test may skip only for its torch."""
    report = yield
    if report.skipped and "backend" in getattr(item, "fixturenames", ()):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not re.search(r"since torch \d|this machine has no|got empty parameter set", reason):
            report.outcome, report.longrepr = "failed", f"must not be skipped: {reason}"
    return report


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
def on_the_cpu() -> Iterator[None]:
    """Make everything on the CPU, whatever ``--device`` says."""
    with torch.device("cpu"):
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
