"""A run on two ranks recorded before has the same losses now; tests/unit/run has the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.record_runs import RUNS, command, numbers, prepare
from tests.launch import run


def test_two_ranks_repeat_their_losses(digits_root: Path, tmp_path: Path) -> None:
    prepare(tmp_path, digits_root)
    done = run(command("two_ranks", tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recorded = json.loads(RUNS.read_text())["two_ranks"]
    for kind, values in numbers(tmp_path / "run").items():
        for value, expected in zip(values, recorded[kind], strict=True):
            assert value == pytest.approx(expected, rel=1e-4), kind
