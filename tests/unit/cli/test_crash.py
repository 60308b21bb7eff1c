"""An error that nobody foresaw: one line, a code of its own, and the traceback in a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import environment

BROKEN = """
import pathlib, sys
import hvdtrain.config.load as load
def broken(*_): raise ZeroDivisionError("caf\\udce9 of " + "x" * 400)
load._validate = broken
from hvdtrain.cli.main import main
main()
"""


def crash(tmp_path: Path, *before: str, tmpdir: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "a.yaml"
    config.write_text("phases: [{epochs: 1}]")
    return subprocess.run(
        [*before, sys.executable, "-c", BROKEN, "plan", str(config)],
        env=environment({"TMPDIR": tmpdir}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_one_line_and_a_file(tmp_path: Path) -> None:
    done = crash(tmp_path, tmpdir=str(tmp_path))
    assert done.returncode == 70
    [line] = done.stderr.splitlines()
    assert line.startswith("hvdtrain: error: internal error at hvdtrain/")
    assert "ZeroDivisionError" in line
    assert len(line) < 600
    [file] = tmp_path.glob("hvdtrain-crash-*.txt")
    assert str(file) in line
    content = file.read_text()
    assert "Traceback" in content
    assert re.search(r"hvdtrain \d.*Python 3", content)


def test_without_a_place_for_the_file_the_traceback_is_printed(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    limited = ["prlimit", "--fsize=0", "--"]
    done = crash(tmp_path, *limited, tmpdir=str(tmp_path))
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "the traceback above" in done.stderr.splitlines()[-1]
