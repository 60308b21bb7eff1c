"""Studies of checkpoints on real ranks: their numbers do not depend on how many share the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from tests.parallel.commands import run_commands
from tests.study_runs import made_run

SMALL = ("--images", "20", "--batch", "3", "--dtype", "fp64", "--json")
STUDIES = {
    "sharpness": ("sharpness", "a", "--subspace", "3", "--iterations", "2"),
    "interpolate": ("interpolate", "a", "b", "--points", "5", "--split", "val"),
    "landscape": ("landscape", "a", "--points", "3", "--trajectory"),
    "hessian": ("hessian", "a", "--top", "2", "--most", "8", "--probes", "2", "--steps", "4"),
}
REFUSED = ("landscape", "b", "--trajectory")


def numbers(value: Any) -> list[float]:
    """All numbers in what a study prints, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.fixture(scope="module")
def folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    made_run(root / "a", small_root, checkpoints=3)
    made_run(root / "b", small_root, seed=1)
    return root


def test_numbers_are_those_of_one_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    alone = {}
    for name, words in STUDIES.items():
        done = CliRunner().invoke(app, ["study", *words, *SMALL, "--output", f"{name}1"])
        assert done.exit_code == 0, done.stderr
        alone[name] = numbers(json.loads(done.stdout))
        assert len(alone[name]) > 20
    for ranks in (2, 4):
        commands = {
            name: ["study", *words, *SMALL, "--output", f"{name}{ranks}"]
            for name, words in STUDIES.items()
        }
        outcomes = run_commands(ranks, {**commands, "refused": ["study", *REFUSED]}, folder)
        refused = outcomes.pop("refused")
        assert refused.codes == [4] * ranks
        [error] = refused.errors
        assert "spans no plane" in error
        for name, outcome in outcomes.items():
            assert outcome.codes == [0] * ranks, outcome.stderr
            found = numbers(json.loads(outcome.stdout))
            assert found == pytest.approx(alone[name], rel=1e-6, abs=1e-6), (name, ranks)
