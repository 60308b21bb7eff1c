"""`hvdtrain launch` on this host ends on SIGTERM with a checkpoint and exit code 75."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launch import QUICK_END, end_jobs, environment, free_port

CONFIG = """
name: long
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, schedule: cosine}}
phases: [{{epochs: 500, image_size: 16, batch_per_worker: 8}}]
train: {{log_every: 1}}
metrics: {{port: {port}}}
"""


@pytest.fixture
def started(small_root: Path, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Jobs that a test starts; they are killed at its end."""
    (tmp_path / "long.yaml").write_text(CONFIG.format(root=small_root, port=free_port()))
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    end_jobs(jobs)


def test_sigterm_leaves_a_checkpoint(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    command = [sys.executable, "-c", QUICK_END, "launch", "--hosts", "localhost:2"]
    command += ["--launcher", "mpirun", "--", "train", "long.yaml", "--run-dir", "run"]
    job = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment({"HVDTRAIN_TEST_TOKEN": "very secret"}),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    started.append(job)
    events = tmp_path / "run/events.jsonl"
    deadline = time.monotonic() + 120
    while not events.exists() or events.read_text().count('"kind": "train"') < 3:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    everyone = psutil.Process(job.pid).children(recursive=True)
    lines = [" ".join(child.cmdline()) for child in everyone]
    assert any("long.yaml" in line for line in lines)
    assert not any("very secret" in line for line in lines)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 75, out
    assert "placement: 2 ranks on 1 host (localhost): 2 ranks\n" in out
    assert "placement: 2 ranks on 1 host (" in out.split("command: ")[1]
    assert "stopped by a signal at epoch" in out
    assert list((tmp_path / "run/checkpoints").iterdir())
