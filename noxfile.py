"""What is run on this repository, each in an environment of its own made by uv.

``nox`` alone checks style, types and tests on the newest torch. ``nox -l`` lists the rest.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "typecheck", "tests"]

ROOT = Path(__file__).parent
CORE, HOOKS = (ROOT / "packages" / name for name in ("featuretap", "featuretap-hooks"))
NEWEST = "2.15.0"
TORCHVISION = {"2.0.1": "0.15.2", "2.6.0": "0.21.0", "2.13.0": "0.28.0", "2.15.0": "0.29.2"}
GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]


def install_torch(session: nox.Session, torch: str) -> None:
    """Install one torch with the torchvision made for it."""
    numpy = ["numpy<2"] if torch == "2.0.1" else []
    session.install(f"torch=={torch}", f"torchvision=={TORCHVISION[torch]}", *numpy)


def install_wheels(session: nox.Session, *packages: Path) -> None:
    """Build the packages and install the wheels, so that what is tested is what is shipped."""
    folder = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    for package in packages or (CORE, HOOKS):
        session.run("uv", "build", "-q", "--wheel", str(package), "-o", str(folder), external=True)
    session.install("--no-deps", "--reinstall", *map(str, folder.glob("*.whl")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check", "packages", "tests", "benchmarks", "noxfile.py")
    session.run("ruff", "format", "--check", "packages", "tests", "benchmarks", "noxfile.py")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of the packages, strictly."""
    install_torch(session, NEWEST)
    session.install(*GROUPS["typecheck"], *GROUPS["cli"])
    install_wheels(session, CORE)
    session.run("mypy", str(CORE / "src"), str(HOOKS / "src"))


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests on the newest torch, and the benchmarks once, untimed."""
    install_torch(session, NEWEST)
    session.install(*GROUPS["test"], *GROUPS["models"], *GROUPS["cli"])
    install_wheels(session)
    session.run("pytest", "tests", "benchmarks", *session.posargs)


@nox.session
@nox.parametrize("torch", list(TORCHVISION))
def conformance(session: nox.Session, torch: str) -> None:
    """Run the conformance suite on one torch version."""
    install_torch(session, torch)
    session.install(*GROUPS["test"])
    # The hooks need indexing to be visible to a torch-function mode, which it is since torch 2.1.
    install_wheels(session, *([CORE] if torch == "2.0.1" else []))
    session.run("pytest", "tests/conformance", *session.posargs)


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure, and write benchmarks/RESULTS.md."""
    install_torch(session, NEWEST)
    session.install(*GROUPS["test"])
    install_wheels(session)
    results = Path(session.create_tmp()) / "results.json"
    options = ["--benchmark-enable", f"--benchmark-json={results}"]
    session.run("pytest", "benchmarks", *options, *session.posargs)
    session.run("python", "benchmarks/report.py", str(results))
