"""Parts that are trained from a later phase on: two real ranks equal one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.launch import mpirun, run

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
CONFIG = """
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn, freeze: [stem, stages.0, stages.1]}}
optimizer: {{weight_decay: 0.01}}
lr: {{base: 0.05, scaling: none, warmup: none, schedule: constant}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: 2}}
  - {{epochs: 1, image_size: 16, batch_per_worker: 2, unfreeze: [stages.1]}}
comm: {{group_mb: 0.01}}
metrics: {{enabled: false}}
"""


def test_two_ranks_train_what_one_trains(small_root: Path, tmp_path: Path) -> None:
    """The groups of gradients are so small that some hold only frozen parameters."""
    (tmp_path / "c.yaml").write_text(CONFIG.format(root=small_root))
    weights, moved = [], []
    for ranks in (1, 2):
        command = [*HVDTRAIN, "train", "c.yaml", "--run-dir", f"r{ranks}"]
        command += [f"train.accumulate={2 // ranks}", "checkpoint.keep=9", "metrics.weights=true"]
        done = run(mpirun(ranks, *command), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        checkpoints = sorted((tmp_path / f"r{ranks}/checkpoints").iterdir())[1:]  # not the start
        events = map(json.loads, (tmp_path / f"r{ranks}/events.jsonl").read_text().splitlines())
        moved.append([event for event in events if event["kind"] == "weights"])
        weights.append([safetensors.torch.load_file(c / "model.safetensors") for c in checkpoints])
    (one_first, one), (two_first, two) = weights
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-5), name
    freed = [name for name in one if name.startswith("stages.1.")]
    assert all(torch.equal(two[n], two_first[n]) for n in one if n.startswith(("stem", "stages.0")))
    assert any(not torch.equal(two[name], two_first[name]) for name in freed)
    assert all(torch.equal(one_first[name], two_first[name]) for name in freed)
    for one_report, two_report in zip(*moved, strict=True):
        for key in ("updates", "distance", "epoch_distance", "path_length", "update_norms"):
            assert two_report[key] == pytest.approx(one_report[key], rel=1e-3), key
    for report, is_free in zip(moved[1], (False, True), strict=True):
        layers = report["layer_distances"]
        of_part = [value for name, value in layers.items() if name.startswith("stages.1.")]
        assert of_part
        assert all((value > 0) == is_free for value in of_part)
