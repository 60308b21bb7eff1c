"""Runs recorded before: the same losses and weights now, and their checkpoint is read.

tests/golden/record_runs.py made the records, before the modules moved into rooms. CPUs round
differently: losses agree within 1e-4, weights within 1e-3.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from hvdtrain.cli.main import app
from hvdtrain.models import MODELS
from tests.golden.record_runs import FINAL, MIDDLE, RUN, RUNS, numbers, prepare
from tests.golden.tiny import CASES, Tiny

RECORDED = json.loads(RUNS.read_text())
EVALUATED = 5
"""Place among the evaluations of the one at `MIDDLE`."""


@pytest.fixture(autouse=True)
def folder(digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images and config; the network is known."""
    prepare(tmp_path, digits_root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    return tmp_path


def hvdtrain(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def require_final_weights(checkpoint: Path) -> None:
    expected = safetensors.torch.load_file(RUN / "final.safetensors")
    weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("case", [name for name, (ranks, _) in CASES.items() if ranks == 1])
def test_seeded_runs_repeat_their_losses(folder: Path, case: str) -> None:
    hvdtrain("train", "tiny.yaml", *CASES[case][1], "--run-dir", "run")
    for kind, values in numbers(folder / "run").items():
        for value, expected in zip(values, RECORDED[case][kind], strict=True):
            assert value == pytest.approx(expected, rel=1e-4), kind
    if case == "one_process":
        require_final_weights(folder / "run/checkpoints" / FINAL)


def test_a_recorded_checkpoint_is_evaluated(folder: Path) -> None:
    shutil.copytree(RUN, "old")
    result = json.loads(hvdtrain("eval", "old", "--json").stdout.splitlines()[-1])
    loss, top1, top5 = RECORDED["one_process"]["evaluations"][EVALUATED]
    assert Path(result["checkpoint"]).name == MIDDLE
    assert result["images"] == 40
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert (result["top1"], result["top5"]) == (top1, top5)


def test_a_run_resumes_from_a_recorded_checkpoint(folder: Path) -> None:
    """Weights, momentum, averaged weights and position are all restored, or the losses differ."""
    shutil.copytree(RUN, "old")
    result = hvdtrain("train", "tiny.yaml", "--resume", "old")
    assert "resumed from" in result.output
    resumed = numbers(folder / "old")
    recorded = RECORDED["one_process"]
    assert len(resumed["losses"]) == 10
    assert resumed["losses"] == pytest.approx(recorded["losses"][-10:], rel=1e-4)
    # The recorded run has no events, so the evaluation of its last epoch is made again.
    assert len(resumed["evaluations"]) == 3
    for values, expected in zip(resumed["evaluations"], recorded["evaluations"][-3:], strict=True):
        assert values == pytest.approx(expected, rel=1e-4)
    require_final_weights(folder / "old/checkpoints" / FINAL)
