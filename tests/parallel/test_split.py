"""Two ranks train on four fifths of a folder, and the rest gives the same accuracy afterwards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.parallel.commands import run_commands

CONFIG = """
data: {val: 0.25, augment: none, flip: false, decode_threads: 1}
model: {name: resnet8_cifar}
lr: {base: 0.05, warmup: none, schedule: constant}
phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]
metrics: {enabled: false}
"""


def test_train_resume_and_evaluate(small_root: Path, tmp_path: Path) -> None:
    config, run_dir = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    images = f"data.train={small_root}/train"
    begin = ["train", config, images, "--run-dir", run_dir]
    commands = {
        "train": begin,
        "another share": [*begin[:3], "phases.0.epochs=2", "data.val=0.4", "--resume", run_dir],
        "resume": [*begin[:3], "phases.0.epochs=2", "--resume", run_dir],
        "eval": ["eval", run_dir, "--json"],
        "eval of trained images": ["eval", run_dir, "data.val=0.5"],
    }
    done = run_commands(2, commands, tmp_path)
    for name, outcome in done.items():
        refused = name in ("another share", "eval of trained images")
        assert outcome.codes == ([3, 3] if refused else [0, 0]), (name, outcome.stderr)
    assert "not the images that this run began with" in done["another share"].stderr
    assert "not the images that this run held out" in done["eval of trained images"].stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    result = json.loads(done["eval"].stdout.splitlines()[0])
    assert result["images"] == 6  # 3 of 11 of each class
    assert result["top1"] == summary["top1"]
