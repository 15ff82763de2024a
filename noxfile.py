"""What is run on this repository, each in an environment of its own made by uv.

``nox`` alone checks style and types, runs all tests on the newest torch, and the conformance suite on the
oldest and on one in the middle. ``nox -l`` lists the rest. What follows ``--`` goes to pytest, except
``--clean``: it removes each environment, of about 5 GB, when its session ends.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nox

ROOT = Path(__file__).parent
CORE, HOOKS = (ROOT / "packages" / name for name in ("featuretap", "featuretap-hooks"))
CHECKED = ["packages", "tests", "benchmarks", ".github", "noxfile.py"]
GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]


class Release(NamedTuple):
    """What goes with one release of torch."""

    torchvision: str
    pythons: range
    """Minor versions of Python 3 that both support, ``torch.compile`` included."""
    numpy: str = "numpy"


TORCH = {
    "2.0.1": Release("0.15.2", range(10, 11), "numpy<2"),
    "2.2.2": Release("0.17.2", range(10, 12), "numpy<2"),
    "2.4.1": Release("0.19.1", range(10, 13)),
    "2.6.0": Release("0.21.0", range(10, 14)),
    "2.8.0": Release("0.23.0", range(10, 14)),
    # On Python 3.13.0 its dynamo takes no notice of ``eval()``, of a plain module either.
    "2.10.0": Release("0.25.0", range(10, 13)),
    "2.13.0": Release("0.28.0", range(10, 15)),
    "2.15.0": Release("0.29.2", range(11, 15)),
}
# As many processes as there are cores, each of one thread, for a test is mostly Python.
PARALLEL = ("-n", "auto", "--maxprocesses=4")
OLDEST, HOOKS_SINCE, MIDDLE, NEWEST = "2.0.1", "2.4.1", "2.13.0", "2.15.0"

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = [
    *("lint", "check_pin", "typecheck", "tests"),
    *(f"conformance(torch='{torch}')" for torch in (OLDEST, MIDDLE)),
]

# pyenv hides, also from uv, all its Pythons but those named here.
_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
if "PYENV_VERSION" not in os.environ and _pyenv.is_dir():
    _installed = sorted(path.name for path in _pyenv.glob("3.1[0-9].*"))
    os.environ["PYENV_VERSION"] = ":".join(["system", *_installed])


def python_for(torch: str) -> str:
    """Return the Python that runs nox if ``torch`` supports it, else the newest that it supports.

    uv downloads it where it is not installed; where it cannot, the session fails and says so.
    """
    running = int(platform.python_version_tuple()[1])
    pythons = TORCH[torch].pythons
    return f"3.{running if running in pythons else pythons[-1]}"


def session(**options: Any) -> Callable[[Callable[..., None]], Any]:
    """Make a session whose environment goes when it ends, if ``--clean`` was given."""

    def register(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def run(session: nox.Session, **parameters: str) -> None:
            try:
                function(session, **parameters)
            finally:
                if "--clean" in session.posargs:
                    shutil.rmtree(session.virtualenv.location)

        return nox.session(run, **options)

    return register


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest, also with what the command line gave."""
    given = [argument for argument in session.posargs if argument != "--clean"]
    session.run("pytest", *arguments, *given, env={"OMP_NUM_THREADS": "1"})


def wheels(session: nox.Session, *packages: Path) -> list[str]:
    """Build the packages, so that what is tested is what is shipped; return what installs them.

    ``WHEELS`` in the environment names a folder where they lie already.
    """
    given = os.environ.get("WHEELS")
    folder = Path(given or Path(session.create_tmp()) / "wheels").absolute()
    found = []
    for package in packages:
        pattern = f"{package.name.replace('-', '_')}-[0-9]*.whl"
        if not given:
            for old in folder.glob(pattern):
                old.unlink()
            command = ["uv", "build", "-q", "--wheel", str(package), "-o", str(folder)]
            session.run_install(*command, external=True)
        (wheel,) = folder.glob(pattern)
        found += ["--reinstall-package", package.name, f"{package.name} @ {wheel.as_uri()}"]
    return found


def install(session: nox.Session, torch: str, *groups: str, hooks: bool = True) -> None:
    """Install one torch and what goes with it, groups of ``pyproject.toml``, and our wheels."""
    release = TORCH[torch]
    session.install(
        f"torch=={torch}",
        f"torchvision=={release.torchvision}",
        release.numpy,
        *(requirement for group in groups for requirement in GROUPS[group]),
        *wheels(session, CORE, *([HOOKS] if hooks else [])),
    )


def has_hooks(torch: str) -> bool:
    """Say whether featuretap-hooks supports ``torch``."""
    versions = list(TORCH)
    return versions.index(torch) >= versions.index(HOOKS_SINCE)


@session()
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*GROUPS["lint"])
    session.run("ruff", "check", *CHECKED)
    session.run("ruff", "format", "--check", *CHECKED)


@session(python=python_for(NEWEST))
def typecheck(session: nox.Session) -> None:
    """Check the types of the packages, strictly."""
    install(session, NEWEST, "typecheck", "cli", hooks=False)
    session.run("mypy", str(CORE / "src"), str(HOOKS / "src"))


@session(python=python_for(NEWEST))
def tests(session: nox.Session) -> None:
    """Run all tests on the newest torch, and the benchmarks once, untimed."""
    install(session, NEWEST, "test", "models", "cli", "peers")
    pytest(session, *PARALLEL, "tests", "benchmarks")


@session()
@nox.parametrize("python,torch", [nox.param(python_for(t), t, id=f"torch='{t}'") for t in TORCH])
def conformance(session: nox.Session, torch: str) -> None:
    """Run the conformance suite, and compare the golden names, on one torch."""
    install(session, torch, "test", hooks=has_hooks(torch))
    backends = ["--backend=fx", *(["--backend=hooks"] if has_hooks(torch) else [])]
    pytest(session, *PARALLEL, "tests/conformance", "tests/models/test_golden_names.py", *backends)


@session()
@nox.parametrize(
    "python,package",
    [
        nox.param(python_for(OLDEST), "featuretap", id="featuretap"),
        nox.param(python_for(HOOKS_SINCE), "featuretap-hooks", id="featuretap-hooks"),
    ],
)
def minimums(session: nox.Session, package: str) -> None:
    """Run the conformance suite on the lowest version of everything that a package allows."""
    packages = [CORE] if package == CORE.name else [CORE, HOOKS]
    torch = OLDEST if package == CORE.name else HOOKS_SINCE
    session.install(
        "--resolution=lowest-direct",
        *(option for one in packages for option in ("-r", str(one / "pyproject.toml"))),
        *("--extra=cli", "--extra=torchvision", "numpy<2"),
        *GROUPS["test"],
        *wheels(session, *packages),
    )
    answer = session.run("python", "-c", "import torch; print(torch.__version__)", silent=True)
    if str(answer).partition("+")[0].strip() != torch:
        session.error(f"the lowest torch that installs is {answer}, not {torch}")
    backends = [f"--backend={name}" for name in ("fx", "hooks")[: len(packages)]]
    pytest(session, *PARALLEL, "tests/conformance", "tests/core", *backends)


@session(python=python_for(NEWEST))
def coverage(session: nox.Session) -> None:
    """Count the lines of both packages that the tests run, those in other processes aside."""
    install(session, NEWEST, "test", "models", "cli", "coverage")
    # Failures are injected by a trace function, which takes the place of the one that counts.
    drop_in = "tests/models/test_torchvision.py"
    folders = ["tests/conformance", "tests/core", "tests/hooks", drop_in]
    ignored = "--ignore=tests/conformance/test_failures.py"
    session.run("coverage", "run", "-m", "pytest", *folders, ignored)
    session.run("coverage", "report")


@session(python=python_for(NEWEST))
def cuda(session: nox.Session) -> None:
    """Run all tests on a GPU; without one this fails."""
    install(session, NEWEST, "test", "models", "cli", "peers")
    session.run("python", "-c", "import torch; torch.zeros(1).cuda()")
    pytest(session, *PARALLEL, "tests", "benchmarks", "--device", "cuda")


@session(python=python_for(NEWEST))
def downstream(session: nox.Session) -> None:
    """Run the tests of timm's and transformers' models on the newest releases of both."""
    install(session, NEWEST, "test")
    session.install("--upgrade", *GROUPS["models"])
    session.run("uv", "pip", "list", external=True)
    pytest(session, *PARALLEL, "tests/models")


@session(python=python_for(NEWEST))
def benchmark(session: nox.Session) -> None:
    """Measure, and write benchmarks/RESULTS.md, its plot and the table of the README."""
    install(session, NEWEST, "test", "peers")
    results = Path(os.environ.get("RESULTS", Path(session.create_tmp()) / "results.json"))
    options = ["--benchmark-enable", f"--benchmark-json={results}"]
    pytest(session, "benchmarks", *options)
    session.run("python", "benchmarks/report.py", str(results))


@nox.session(venv_backend="none")
def check_pin(session: nox.Session) -> None:
    """Check that the packages require each other, and torch, as this file says."""
    core, hooks = (
        nox.project.load_toml(package / "pyproject.toml")["project"] for package in (CORE, HOOKS)
    )
    if core["version"] != hooks["version"]:
        session.error(f"versions differ: {core['version']} and {hooks['version']}")
    expected = [
        (CORE, core, f"torch>={OLDEST}"),
        (HOOKS, hooks, f"torch>={HOOKS_SINCE}"),
        (HOOKS, hooks, f"{CORE.name}=={core['version']}"),
    ]
    for package, project, requirement in expected:
        if requirement not in project["dependencies"]:
            session.error(f"{package.name} does not require {requirement}")


@session()
def dist(session: nox.Session) -> None:
    """Build the packages into dist/, and check what is in the wheels."""
    folder = ROOT / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    session.install(*GROUPS["dist"])
    for package in (CORE, HOOKS):
        session.run("uv", "build", "-q", str(package), "-o", str(folder), external=True)
    session.run("twine", "check", "--strict", *map(str, sorted(folder.glob("featuretap*"))))
    for package in (CORE, HOOKS):
        name = package.name.replace("-", "_")
        (wheel,) = folder.glob(f"{name}-[0-9]*.whl")
        files = set(zipfile.ZipFile(wheel).namelist())
        source = package / "src"
        expected = {
            path.relative_to(source).as_posix()
            for path in source.rglob("*")
            if path.suffix in {".py", ".typed"}
        }
        found = {file for file in files if not re.match(rf"{name}-[^/]*\.dist-info/", file)}
        if found != expected or f"{name}/py.typed" not in found:
            session.error(f"{wheel.name}: unexpected or missing {sorted(found ^ expected)}")
        if not any(file.endswith("/licenses/LICENSE") for file in files):
            session.error(f"{wheel.name} has no license")
