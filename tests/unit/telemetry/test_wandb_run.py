"""The real wandb without a network: what it keeps in the run directory, to be synced later."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.config.trackers import _found
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.reports import Report, Start, Stop
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.telemetry.trackers import sink
from tests.made_reports import END, EVAL, train

needs_wandb = pytest.mark.skipif(not _found("wandb"), reason="no wandb here")
BLOCK, HEADER = 2**15, 7
FULL, LAST = 1, 4


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """wandb has no server and no home; a busy machine has time enough at the end."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(sink.Tracker.__init__, "__defaults__", (300.0,))
    monkeypatch.setattr(sink, "STOP_S", 300.0)


def attempt(paths: RunPaths, *reports: Report, seed: int = 1) -> None:
    paths.create()
    metrics = Metrics(enabled=False, wandb="team/digits")
    cfg = Config(phases=[Phase(epochs=1)], metrics=metrics, seed=seed)
    sinks = Sinks(cfg, Solo(), paths, ["a"])
    for report in (Start(1, 1, 3.5), *reports):
        sinks.write(report)
    sinks.close()


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, which has the format of LevelDB's log behind 7 bytes."""
    kind = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, record = file.read_bytes(), HEADER, b""
    while at < len(data):
        if (left := BLOCK - at % BLOCK) < HEADER:
            at += left
            continue
        size, part = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += HEADER
        record += data[at : at + size]
        at += size
        if part in (FULL, LAST):
            yield kind.FromString(record)
            record = b""


@needs_wandb
def test_a_run_and_its_second_attempt(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run-1")
    attempt(paths, train(step=20), Stop("signal", 20))
    paths.report.write_text("the page")
    attempt(paths, train(step=40), EVAL, END, seed=2)
    first, second = sorted((paths.root / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name == f"run-{(paths.root / 'wandb.id').read_text().strip()}.wandb"

    def of(file: Path, kind: str) -> list[Any]:
        return [getattr(r, kind) for r in records(file) if r.WhichOneof("record_type") == kind]

    [run] = of(first, "run")
    assert (run.entity, run.project, run.display_name) == ("team", "digits", "run-1")
    config = {one.key: one.value_json for one in run.config.update}
    assert (config["seed"], config["phases.0.epochs"]) == ("1", "1")
    assert not [key for key in config if key.startswith("metrics.")]
    points = [
        {
            one.nested_key[0] if one.nested_key else one.key: json.loads(one.value_json)
            for one in item
        }
        for item in (history.item for history in of(second, "history"))
    ]
    assert [
        (point["step"], {*point} & {"train/loss", "eval/top1", "end/top1"}) for point in points
    ] == [
        (40, {"train/loss"}),
        (40, {"eval/top1"}),
        (20, {"end/top1"}),
    ]
    assert [one.step_metric for one in of(first, "metric") if one.glob_name == "*"] == ["step"]
    assert [one.exit_code for one in of(first, "exit")] == [1]
    assert [one.exit_code for one in of(second, "exit")] == [0]
    assert len(of(first, "preempting")) == 1
    [artifact] = of(second, "artifact")
    assert artifact.type == "report"
    assert [one.path for one in artifact.manifest.contents] == ["report.html"]
    kinds = {r.WhichOneof("record_type") for r in records(second)}
    assert not kinds & {"output", "output_raw", "stats", "environment", "files"}
    assert "warning" not in paths.events.read_text()


@needs_wandb
def test_the_key_is_nowhere_in_the_run_directory(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run-1")
    attempt(paths, train(step=20), END)
    files = [file for file in paths.root.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert not [file for file in files if b"k" * 40 in file.read_bytes()]


@needs_wandb
def test_a_server_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(sink.Tracker.__init__, "__defaults__", (1.0,))
    paths = RunPaths(tmp_path / "run-1")
    attempt(paths, train(step=20), END)
    notes = [json.loads(line) for line in paths.events.read_text().splitlines()]
    warnings = [one["text"] for one in notes if one.get("text", "").startswith("warning")]
    assert warnings
    assert all(text.startswith("warning: Weights & Biases: ") for text in warnings)
