"""The keys of events.jsonl and summary.json: other programs read them, so they do not change."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from hvdtrain.telemetry.reports import End, Kind, Report, Scaling
from hvdtrain.telemetry.sinks import JsonLines
from tests.made_reports import END, REPORTS, train

PROGRESS = [
    *("step", "epoch", "epochs", "progress", "eta_s", "phase", "image_size", "batch_per_worker"),
    *("global_batch_size", "total_samples", "lr", "momentum", "gradient_norm", "skipped_updates"),
    *("loss_scale", "loss", "top1", "top5", "samples", "seconds", "images_per_second"),
    *("step_seconds", "network_bytes_per_second", "data_wait_ratio", "comm_wait_ratio"),
    *("bad_samples", "read_retries", "gradient_noise_scale"),
]
EFFICIENCY = [
    *("efficiency", "efficiency_so_far", "efficiency_ceiling", "lost_data_ratio"),
    *("lost_communication_ratio", "lost_straggling_ratio", "lost_padding_ratio"),
    *("lost_other_ratio", "cause", "straggler", "explanation"),
]
RESULT = ["loss", "top1", "top5"]
RUN = ["name", "run_dir", "world_size", "epochs", "steps", "samples"]
COSTS = [
    *("images_per_second", "scaling_efficiency", "lost_time", "comm", "noise_scale"),
    *("train_seconds", "wall_seconds", "classes", "accepted_changes"),
    *("attempts", "attempt_train_seconds", "run_wall_seconds"),
]
RESTARTS = ["restarts_after_signal", "restarts_after_crash"]
KEYS: dict[str, list[str]] = {
    "start": ["world_size", "nodes", "setup_seconds", *RESTARTS, "changes"],
    "train": [*PROGRESS, *EFFICIENCY],
    "eval": ["epoch", "step", "images", *RESULT],
    "checkpoint": ["path", "seconds", "bytes", "step", "stall_seconds"],
    "note": ["text"],
    "stop": ["cause", "step"],
    "end": [*RUN, *RESULT, *COSTS],
    "weights": [
        *("epoch", "step", "distance", "layer_distances", "epoch_distance"),
        *("layer_epoch_distances", "path_length", "updates", "update_norms"),
    ],
}
"""Keys of each kind in order, after `time` and `kind`."""
KEYS_OF_ONE_RANK = KEYS | {"train": [*PROGRESS, "efficiency"]}


def test_all_kinds_are_made() -> None:
    assert [report.kind for report in REPORTS] == list(KEYS)
    assert set(get_args(Kind)) == set(KEYS)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.kind)
def test_keys_of_an_event(report: Report, tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "events.jsonl", print)
    sink.write(report)
    sink.close()
    [line] = (tmp_path / "events.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["time", "kind", *KEYS[report.kind]]


def test_times_of_events_go_on_steadily_when_the_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    sink = JsonLines(tmp_path / "events.jsonl", print)
    for jump_s in (0, 7200, -86400):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: began + jump_s)
        sink.write(REPORTS[0])
    sink.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in lines]
    assert times == sorted(times)
    assert began - 1 < times[0] <= times[-1] < began + 3600


def test_one_rank_has_no_efficiency() -> None:
    values = replace(train(), scaling=Scaling()).values()
    assert list(values) == KEYS_OF_ONE_RANK["train"]
    assert values["efficiency"] is None


def test_without_validation_there_is_no_result() -> None:
    end: End = replace(END, loss=None, top1=None, top5=None)
    assert list(end.values()) == [*RUN, *COSTS]
