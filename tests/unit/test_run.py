"""tests/run.py: two passes, one verdict, one last line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import environment

CONFIG = """
[pytest]
markers =
    serial: by itself
    slow: takes long
"""
TESTS = """
import os
import pytest

def test_beside_others():
    assert "PYTEST_XDIST_WORKER" in os.environ

@pytest.mark.serial
def test_by_itself():
    assert "PYTEST_XDIST_WORKER" not in os.environ

@pytest.mark.slow
def test_that_fails():
    assert False

@pytest.mark.slow
@pytest.mark.serial
def test_that_is_skipped():
    pytest.skip("no reason")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(CONFIG)
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code", "counts"),
    [
        ((), 1, "1 failed, 2 passed, 1 skipped"),
        (("-m", "not slow"), 0, "2 passed"),
        (("-k", "by_itself"), 0, "1 passed"),
        (("-k", "no_such_name"), 5, "no tests ran"),
        (("--no-such-option",), 4, "no tests ran"),
    ],
)
def test_both_passes_are_counted(
    folder: Path, options: tuple[str, ...], code: int, counts: str
) -> None:
    command = [sys.executable, "-m", "tests.run", *options]
    env = {name: value for name, value in environment().items() if "PYTEST" not in name}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    *_, before, last = ["", *done.stdout.splitlines()]
    assert re.fullmatch(rf"=+ {counts} in [\d.]+s \(0:00:\d\d\) =+", last)
    assert ("FAILED test_it::test_that_fails" in before) == (code == 1)
