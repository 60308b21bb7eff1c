"""A run writes its report at the end; if that fails, there is only a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.report.run import read_run
from hvdtrain.report.targets import Target
from hvdtrain.report.write import write_report
from hvdtrain.train import train
from tests.unit.report.report_page import assert_fetches_nothing, assert_references_hold, read
from tests.unit.telemetry.test_reports import KEYS_OF_ONE_RANK

CONFIG = """
name: tiny
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.1, base_batch: 64, warmup: none, schedule: constant}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: 64}}
  - {{epochs: 1, image_size: 24, batch_per_worker: 64}}
train: {{precision: fp32, log_every: 5}}
metrics: {{enabled: false}}
"""


def test_a_real_run_writes_its_report(digits_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    summary = train(parse_config(CONFIG.format(root=digits_root)), Solo(), run_dir=root)
    for line in (root / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        assert list(event) == ["time", "kind", *KEYS_OF_ONE_RANK[event["kind"]]]
    written = json.loads((root / "summary.json").read_text())
    assert list(written) == list(summary) == KEYS_OF_ONE_RANK["end"]
    text, page = read(root / "report.html")
    assert_fetches_nothing(text, page)
    assert_references_hold(page)
    assert "resnet8_cifar" in page.text  # of the plan
    [figures] = write_report([root], tmp_path / "again.html", [Target("top1", 0.01)])
    found = figures.as_dict()
    for key in ("top1", "top5", "samples", "images_per_second", "train_seconds"):
        assert found[key] == pytest.approx(summary[key], rel=1e-3), key
    assert found["wall_seconds"] >= summary["wall_seconds"] - 0.01  # times of events are in ms
    assert [phase["image_size"] for phase in found["phases"]] == [16, 24]
    assert sum(phase["images"] for phase in found["phases"]) == summary["samples"]
    assert (found["nodes"], found["nodes_assumed"], found["finished"]) == (1, False, True)
    assert found["targets"][0]["epoch"] == 1.0


def test_a_report_that_fails_does_not_fail_the_run(
    small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("hvdtrain.report.write.write_report", broken)
    cfg = parse_config(CONFIG.format(root=small_root).replace("worker: 64", "worker: 8"))
    summary = train(cfg, Solo(), run_dir=tmp_path)
    assert summary["epochs"] == 2
    notes = [note["text"] for note in read_run(tmp_path).notes]
    assert notes[-1] == "warning: no report.html: no ink"
    assert not (tmp_path / "report.html").exists()
