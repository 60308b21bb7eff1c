"""`hvdtrain launch --max-restarts`: a killed rank costs the steps since the last checkpoint, no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import BIN, end_jobs, environment, free_port

CONFIG = """
name: restarts
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup: none, schedule: cosine}}
phases: [{{epochs: 3, image_size: 16, batch_per_worker: 16}}]
train: {{log_every: 5}}
metrics: {{port: {port}}}
"""
LAUNCH = [str(BIN / "hvdtrain"), "launch", "--hosts", "localhost:2", "--max-restarts", "2", "--"]


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCH, "train", "restarts.yaml", "--run-dir", name],
        cwd=folder,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def events(run: Path) -> list[dict[str, object]]:
    lines = (
        (run / "events.jsonl").read_text().splitlines() if (run / "events.jsonl").exists() else []
    )
    return [json.loads(line) for line in lines]


def last_weights(run: Path) -> bytes:
    return (max((run / "checkpoints").iterdir()) / "model.safetensors").read_bytes()


def test_a_killed_rank(digits_root: Path, tmp_path: Path) -> None:
    (tmp_path / "restarts.yaml").write_text(CONFIG.format(root=digits_root, port=free_port()))
    whole = start(tmp_path, "whole")
    broken = None
    try:
        out, _ = whole.communicate(timeout=300)
        assert whole.returncode == 0, out
        broken = start(tmp_path, "broken")
        run = tmp_path / "broken"
        deadline = time.monotonic() + 120
        while not any(event["kind"] == "checkpoint" for event in events(run)):
            assert broken.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ranks = [
            process
            for process in psutil.Process(broken.pid).children(recursive=True)
            if "train" in process.cmdline() and "mpirun" not in process.cmdline()[0]
        ]
        os.kill(max(process.pid for process in ranks), signal.SIGKILL)
        out, _ = broken.communicate(timeout=300)
    finally:
        end_jobs([job for job in (whole, broken) if job is not None])
    assert broken.returncode == 0, out
    assert "hvdtrain: launch: attempt 1 ended after" in out
    assert "Traceback" not in out
    starts = [event for event in events(run) if event["kind"] == "start"]
    assert [event["restarts_after_crash"] for event in starts] == [0, 1]
    notes = [str(event["text"]) for event in events(run) if event["kind"] == "note"]
    assert any(note.startswith("attempt 1 ended") for note in notes)
    assert last_weights(run) == last_weights(tmp_path / "whole")


@pytest.mark.parametrize("setting", ["lr.bse=1", "data.train=/no/such/folder"])
def test_a_fault_of_the_settings_is_told_once(
    digits_root: Path, tmp_path: Path, setting: str
) -> None:
    (tmp_path / "restarts.yaml").write_text(CONFIG.format(root=digits_root, port=free_port()))
    done = subprocess.run(
        [*LAUNCH, "train", "restarts.yaml", setting],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode in (2, 3)
    assert "attempt" not in done.stdout + done.stderr
