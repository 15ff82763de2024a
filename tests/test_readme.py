"""What the READMEs say is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize(
    "path", ["README.md", "packages/featuretap/README.md", "packages/featuretap-hooks/README.md"]
)
def test_the_programs_print_what_the_readme_shows(path):
    programs = PROGRAM.findall((ROOT / path).read_text())
    assert programs
    for program, expected in programs:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(program, path, "exec"), {})
        assert output.getvalue() == expected


def test_the_first_command_prints_the_tree_that_the_readme_shows(capsys):
    from featuretap.__main__ import main

    text = (ROOT / "README.md").read_text()
    command, shown = re.search(
        r"python -m featuretap ([^\n]*)\n```\n\n```text\n(.*?)```", text, re.DOTALL
    ).groups()
    assert main(command.split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for part in re.split(r"^\s*\.\.\.\n", shown, flags=re.MULTILINE):
        lines = part.splitlines()
        at = printed.index(lines[0])
        assert printed[at : at + len(lines)] == lines


def test_ci_runs_the_second_command():
    text = (ROOT / "README.md").read_text()
    assert text.count("-m pip install -q nox uv") == 1
    assert "-m pip install -q nox uv" in (ROOT / ".ci" / "run").read_text()
