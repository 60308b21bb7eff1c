"""`hvdtrain report`: without torch, as text and as JSON, an error in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.cli.main import main
from tests.report_runs import restarted

BUSY = "hvdtrain: writing the report, "
"""Begins a line that is told every two seconds, as on a busy machine."""
SCRIPT = """
import sys
from hvdtrain.cli.main import main
try:
    main()
finally:
    loaded = [name for name in ("torch", "horovod", "nvidia.dali") if name in sys.modules]
    assert not loaded, loaded
"""


def test_the_command(tmp_path: Path) -> None:
    root = restarted(tmp_path / "run").root
    arguments = ["report", str(root), "--target", "top1=0.75", "--price-per-node-hour", "24.48"]
    line = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    words = done.stdout.replace("\N{NO-BREAK SPACE}", " ")
    assert "top-1 ≥ 75 %: training 40.0 s, wall 17 min 12 s, epoch 2, $1.71 on demand" in words
    assert done.stdout.endswith(f"{root / 'report.html'}\n")
    assert (root / "report.html").is_file()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Exit code of `hvdtrain report` in this process."""
    monkeypatch.setattr(sys, "argv", ["hvdtrain", "report", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_command_with_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(restarted(tmp_path / name).root) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *runs, "--json", "--spot-price", "7.3", "--nodes", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "report.html"
    assert (tmp_path / "report.html").is_file()
    assert [run["spot_cost"] for run in found["runs"]] == [pytest.approx(3 * 86 / 3600 * 7.3)] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--target", "93"], 2, "--target 93: expected METRIC=VALUE"),
        (["run", "--target", "top9=0.9"], 2, "unknown metric 'top9'"),
        (["run", "--spot-price", "cheap"], 2, "--spot-price"),
        (["run", "--spot-price", "inf"], 2, "expected dollars, found inf"),
        (["run", "--nodes", "0"], 2, "--nodes"),
        (["nowhere"], 6, "nowhere: not a run directory"),
        (["run", "--output", "run/events.jsonl/r.html"], 6, "cannot be written"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    restarted(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    lines = [line for line in error.splitlines() if not line.startswith(BUSY)]
    assert len(lines) == 1, error
