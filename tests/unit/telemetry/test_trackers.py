"""Trackers in processes of their own: what they get, and that none of their faults reaches a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.config.trackers import require_trackers
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.reports import Note, Start, Stop
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.telemetry.trackers import sink
from hvdtrain.telemetry.trackers.sink import Tracker, record
from hvdtrain.telemetry.trackers.worker import reason
from tests.launch import free_port
from tests.made_reports import END, EVAL, REPORTS, TRAIN, train

START = Start(1, 1, 3.5)
Make = Callable[..., Tracker]
PATIENCE_S = 250.0
"""For processes on a busy machine."""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]) -> Make:
    """A tracker of the kind `place` whose files are in `tmp_path`."""
    monkeypatch.setattr(sink, "WORKER", "tests.tracker_worker")
    monkeypatch.setattr(sink, "STOP_S", PATIENCE_S)
    about = {"run": "run-1", "root": str(tmp_path), "config": {"seed": 1}, "version": "1"}

    def note(text: str) -> None:
        if not text.startswith("File: the numbers of this run go to"):
            notes.append(text)

    def made(place: str, close_s: float = PATIENCE_S) -> Tracker:
        return Tracker("file", "File", {**about, "place": place}, note, close_s)

    return made


def sent(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "sent.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], bool], tracker: Tracker) -> None:
    """Until `condition` holds; reports of no interest have the tracker exchange meanwhile."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        tracker._exchange()
        time.sleep(0.02)


def test_what_a_tracker_gets(make: Make, tmp_path: Path, notes: list[str]) -> None:
    tracker = make("ok")
    for report in (START, TRAIN, EVAL, Note("a path"), END):
        tracker.write(report)
    (tmp_path / "report.html").write_text("page")
    tracker.close()
    about, first, second, end, last = sent(tmp_path)
    assert (about["run"], about["config"]) == ("run-1", {"seed": 1})
    assert (first["kind"], first["step"]) == ("train", 20)
    assert first["values"]["train/loss"] == 2.5
    assert (second["step"], second["values"]["eval/top1"]) == (40, 0.5)
    assert (end["step"], end["values"]["end/images_per_second"]) == (20, 1234.5)
    assert last == {"status": "complete", "page": "report.html"}
    assert not notes


def test_only_numbers_go_out() -> None:
    for report in REPORTS:
        for key, value in record(report)["values"].items():
            assert key.startswith(f"{report.kind}/")
            assert type(value) in (int, float)
    values = record(train(loss=float("nan"), gradient_norm=None))["values"]
    assert not {"train/loss", "train/gradient_norm", "train/explanation", "train/step"} & {*values}


def test_before_training_nothing_is_started(make: Make, tmp_path: Path) -> None:
    tracker = make("ok")
    tracker.write(Note("text"))
    tracker.close()
    assert not (tmp_path / "sent.jsonl").exists()


@pytest.mark.parametrize(("reports", "status"), [([Stop("signal", 20)], "stopped"), ([], "failed")])
def test_an_attempt_that_does_not_complete_the_run(
    make: Make, tmp_path: Path, reports: list[Stop], status: str
) -> None:
    (tmp_path / "report.html").write_text("of the last attempt")
    tracker = make("ok")
    for report in (START, TRAIN, *reports):
        tracker.write(report)
    tracker.close()
    assert sent(tmp_path)[-1] == {"status": status, "page": None}


def test_a_server_that_is_down_at_the_start(
    make: Make, tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILE_API_KEY", "a-key-of-mine")
    tracker = make("down")
    tracker.write(START)
    tracker.write(TRAIN)
    wait_for(lambda: bool(notes), tracker)
    (tmp_path / "up").touch()
    wait_for((tmp_path / "sent.jsonl").exists, tracker)
    tracker.write(END)
    tracker.close()
    assert [line.get("step") for line in sent(tmp_path)] == [None, 20, 20, None]
    [note] = notes
    assert note == (
        "warning: File: https://host refused the key ***; training goes on, and it is tried again"
    )


def test_a_server_that_stays_down(make: Make, notes: list[str]) -> None:
    tracker = make("down")
    for report in (START, TRAIN, END):
        tracker.write(report)
    wait_for(lambda: bool(notes), tracker)
    tracker.close()
    assert len(notes) == 2
    assert notes[1].endswith("nothing of this attempt is there")


def test_a_server_that_is_lost_on_the_way(make: Make, tmp_path: Path, notes: list[str]) -> None:
    tracker = make("lost")
    for report in (START, TRAIN, EVAL, END):
        tracker.write(report)
    tracker.close()
    assert [line["kind"] for line in sent(tmp_path)[1:]] == ["train"]
    assert notes[-1] == (
        "warning: File: the server is gone: the last 2 reports of this attempt are missing there"
    )


def test_a_library_that_ends_its_process(make: Make, notes: list[str]) -> None:
    tracker = make("dies")
    tracker.write(START)
    tracker.write(TRAIN)
    wait_for(lambda: not tracker._exchange(), tracker)
    for report in (EVAL, TRAIN, END):
        tracker.write(report)
    tracker.close()
    assert notes == ["warning: File: its process has ended: nothing more is sent"]


def test_a_library_that_cannot_be_imported(make: Make, notes: list[str]) -> None:
    tracker = make("no import")
    tracker.write(START)
    tracker.write(TRAIN)
    tracker.close()
    assert notes == [
        "warning: File: cannot be used: its library is broken; training goes on without it"
    ]


def test_a_tracker_that_hangs_is_left_and_ended(
    make: Make, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "MAX_WAITING_BYTES", 2**17)
    tracker = make("hangs", close_s=0.5)
    tracker.write(START)
    for _ in range(2000):  # more than a pipe and the process take
        tracker.write(TRAIN)
    process = tracker._process
    assert process is not None
    tracker.close()
    assert notes[0] == "warning: File: not complete after 0 s, and left as it is"
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_what_a_stopped_process_does_not_take_is_dropped_and_counted(
    make: Make, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "MAX_WAITING_BYTES", 2**14)
    tracker = make("ok", close_s=0.1)
    tracker.write(START)
    assert tracker._process is not None
    os.kill(tracker._process.pid, signal.SIGSTOP)
    for _ in range(500):
        tracker.write(TRAIN)
    tracker.close()
    assert notes[-1].endswith("reports were not taken in time, and are missing there")


def test_a_training_that_is_killed(tmp_path: Path) -> None:
    """What it said last is sent, and the run is left as failed; signals for the job change nothing."""
    about = {"run": "run-1", "root": str(tmp_path), "config": {}, "version": "1", "place": "ok"}
    command = [sys.executable, "-m", "tests.tracker_worker", "file"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        for message in ({"kind": "about", **about}, record(TRAIN)):
            process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
        end = time.monotonic() + PATIENCE_S
        while not (tmp_path / "sent.jsonl").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        answer, _ = process.communicate(b'{"kind": "train", "st', timeout=PATIENCE_S)
    assert (process.returncode, answer) == (0, b"null\n")
    assert [line.get("step") for line in sent(tmp_path)] == [None, 20, None]
    assert sent(tmp_path)[-1]["status"] == "failed"


def test_no_secret_is_in_a_reason() -> None:
    env = {"WANDB_API_KEY": "0123456789", "MLFLOW_TRACKING_PASSWORD": "word!", "HOME": "/root"}
    text = reason(ValueError("\n https://a:b@c/ 0123456789 word! /root \nmore"), env)
    assert text == "https://c/ *** *** /root"
    assert reason(ValueError(), env) == "ValueError"
    assert len(reason(ValueError("x" * 1000), env)) == 301


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"wandb": "digits"}, r"^metrics\.wandb: wandb cannot be imported: pip install wandb,"),
        ({"mlflow": "digits"}, r"^metrics\.mlflow: mlflow cannot .* pip install mlflow-skinny,"),
    ],
)
def test_a_library_that_is_missing(
    metrics: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the current folder has one of that name, as wandb makes it."""
    (tmp_path / next(iter(metrics))).mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for name in list(metrics):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    with pytest.raises(ResourceError, match=message):
        require_trackers(Metrics(**metrics), {"MLFLOW_TRACKING_URI": "http://host"})
    paths = RunPaths(tmp_path / "run")
    paths.create()
    cfg = Config(phases=[Phase(epochs=1)], metrics=Metrics(port=free_port(), **metrics))
    with pytest.raises(ResourceError, match=message):
        Sinks(cfg, Solo(), paths, ["a"])


def test_an_mlflow_server_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvdtrain.config.trackers._found", lambda _name: True)
    with pytest.raises(ResourceError, match=r"MLFLOW_TRACKING_URI is not set: export"):
        require_trackers(Metrics(mlflow="digits"), {})
    require_trackers(Metrics(mlflow="digits"), {"MLFLOW_TRACKING_URI": "http://host"})
    require_trackers(Metrics(), {})
