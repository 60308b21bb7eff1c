"""`hvdtrain tune` on real ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hvdtrain.config.load import load_config
from tests.launch import mpirun, run
from tests.parallel.commands import run_commands

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
CONFIG = """
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.1, base_batch: 16, warmup: none, schedule: constant}}
phases: [{{epochs: 1, image_size: 16, batch_per_worker: 32}}]
"""
ONE_RANK_RUNS_OUT = """
import sys
import torch
from hvdtrain.cli import main as cli
from hvdtrain.analysis import largest_batch

true = largest_batch.calibrate

def calibrate(state, batch, **options):
    if state.comm.rank == 1 and len(batch.labels) > 20:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return true(state, batch, **options)

largest_batch.calibrate = calibrate
cli.main()
"""


@pytest.fixture
def config(digits_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(root=digits_root))
    return path


def test_the_range_test_gives_the_same_curve_on_two_ranks_as_on_one(config: Path) -> None:
    curves = []
    for ranks, batch in ((1, 32), (2, 16)):
        command = [*HVDTRAIN, "tune", "lr", config, f"phases.0.batch_per_worker={batch}"]
        command += ["--steps", "50", "--to", "0.5", "--output", f"lr{ranks}"]
        done = run(mpirun(ranks, *command), cwd=config.parent)
        assert done.returncode == 0, done.stderr
        assert "steepest descent" in done.stdout
        curves.append(json.loads((config.parent / f"lr{ranks}/lr_range.json").read_text()))
    one, two = curves
    assert len(one["losses"]) == 50  # more than the 45 steps of an epoch
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["rates"] == one["rates"]
    assert max(one["losses"]) - min(one["losses"]) > 0.03  # the loss has fallen


def test_all_ranks_agree_when_one_runs_out_of_memory(config: Path) -> None:
    worker = config.parent / "worker.py"
    worker.write_text(ONE_RANK_RUNS_OUT)
    command = [sys.executable, worker, "tune", "batch", config, "--json", "--write", "tuned.yaml"]
    done = run(mpirun(2, *command), cwd=config.parent)
    assert done.returncode == 0, done.stderr
    trials = {t["batch_per_worker"]: t["images_per_s"] for t in json.loads(done.stdout)["16"]}
    assert {batch for batch, speed in trials.items() if speed} == {8, 16}
    assert trials[32] is None
    assert load_config(str(config.parent / "tuned.yaml"), []).phases[0].batch_per_worker == 16


def test_wrong_use_is_one_line(config: Path) -> None:
    (config.parent / "existing.yaml").write_text("x: 1")
    cases = [
        (["lr", config, "--from", "1", "--to", "0.1"], 2, "expected 0 < from < to"),
        (["batch", config, "--most", "16", "--write", "existing.yaml"], 6, "exists; name another"),
        (["batch", config, "--memory-gb", "1e-6"], 2, "not even 8 images of 16 px fit"),
    ]
    commands = {words: ["tune", *options] for options, _, words in cases}
    for (_, code, words), outcome in zip(
        cases, run_commands(2, commands, config.parent).values(), strict=True
    ):
        assert outcome.codes == [code, code]
        assert len(outcome.errors) == 1, outcome.stderr
        assert words in outcome.errors[0]
