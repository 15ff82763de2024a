"""The command line, called in a directory of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featuretap.__main__ import main

pytest.register_assert_rewrite("command")

from command import NETWORK, Answer, Run  # noqa: E402


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Call the command in a directory that holds ``net.py``; returns exit code, stdout, stderr."""
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*argv: str) -> Answer:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    sys.modules.pop("net", None)
