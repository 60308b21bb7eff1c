"""The exit codes that users are promised: in the documentation, in --help, and of the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.errors import exit_codes
from tests.launch import REPOSITORY, environment

PAGE = REPOSITORY / "docs/exit-codes.md"


def test_the_page_lists_every_error() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    documented = {int(code): meaning for code, meaning in rows}
    assert {code: documented.get(code) for code in exit_codes()} == exit_codes()
    of_the_process_or_launcher = {0, 1, 130, 141, 205}
    assert set(documented) - set(exit_codes()) == of_the_process_or_launcher


def test_published_codes_never_change() -> None:
    """Batch scripts and schedulers act on them."""
    assert set(exit_codes()) == {2, 3, 4, 5, 6, 7, 8, 9, 70, 75}


def hvdtrain(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hvdtrain", *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
    )


def test_help_lists_them() -> None:
    text = " ".join(hvdtrain("--help").stdout.split())
    for code, meaning in exit_codes().items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("plan", "{tmp}/none.yaml"), 2),
        (("data", "scan", "{tmp}/none"), 3),
        (("report", "{tmp}"), 6),
    ],
)
def test_a_fault_ends_the_process_with_its_code(
    words: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    done = hvdtrain(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == code
    assert done.stderr.startswith("hvdtrain: error: ")
    assert len(done.stderr.splitlines()) == 1
