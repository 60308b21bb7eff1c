"""A rank that makes no progress ends the job with one line, whatever holds it; a suspension does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.launch import BIN, end_jobs, environment, mpirun

TRAIN = [str(BIN / "hvdtrain"), "train"]
HANGS = """
import os, sys, time
from pathlib import Path
from hvdtrain.cli.main import main
from pipelines.stream import Stream
read = Stream._read_one
def hung(self, i):
    while os.environ["OMPI_COMM_WORLD_RANK"] == "1" and Path("hang").exists():
        time.sleep(1000)
    return read(self, i)
Stream._read_one = hung
sys.argv[0] = "hvdtrain"
sys.argv.insert(1, "train")
main()
"""
"""hvdtrain train, whose rank 1 reads for ever once there is a file `hang`."""
COPIES = 300
CONFIG = """
name: stall
data: {{train: {root}, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup: none, schedule: constant}}
phases: [{{epochs: 500, image_size: 16, batch_per_worker: 2}}]
train: {{log_every: 5, stall_timeout: {timeout_s}}}
comm: {{preflight: false}}
metrics: {{enabled: false}}
"""


@pytest.fixture
def jobs() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    end_jobs(started)


def start(words: list[str], timeout_s: float, images: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a training of copies of `images` in `folder`; returns when it has reported once.

    An epoch outlasts the test, so that a rank that is stopped is at a step, not at a checkpoint.
    """
    for image in sorted(images.rglob("*.jpg")):
        target = folder / "train" / image.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        for copy in range(COPIES):
            target.with_stem(f"{target.stem}-{copy}").hardlink_to(image)
    config = folder / "stall.yaml"
    config.write_text(CONFIG.format(root=folder / "train", timeout_s=timeout_s))
    job = subprocess.Popen(
        [*words, str(config), "--run-dir", "run"],
        cwd=folder,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for_steps(job, folder, 1)
    return job


def steps(folder: Path) -> int:
    events = folder / "run/events.jsonl"
    return events.read_text().count('"kind": "train"') if events.exists() else 0


def wait_for_steps(job: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Wait for `count` more reports."""
    deadline, before = time.monotonic() + 120, steps(folder)
    while steps(folder) < before + count:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end_of(job: subprocess.Popen[str], ranks: list[psutil.Process]) -> str:
    """The one error line of a job that ends with the documented code, and leaves nothing."""
    _, err = job.communicate(timeout=90)
    assert job.returncode == 8, err
    lines = [line for line in err.splitlines() if "hvdtrain: error: " in line]
    assert len(lines) == 1, err
    _, alive = psutil.wait_procs(ranks, timeout=30)
    assert alive == []
    return lines[0]


def stacks(line: str, folder: Path) -> list[str]:
    match = re.search(r"its stacks are in (\S+);", line)
    assert match
    return (folder / match[1]).read_text().splitlines()


def test_a_suspension_does_not_end_a_job_but_a_stopped_rank_does(
    small_root: Path, tmp_path: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    jobs.append(start(mpirun(2, *TRAIN), 4.0, small_root / "train", tmp_path))
    [job] = jobs
    ranks = [p for p in psutil.Process(job.pid).children() if "train" in p.cmdline()]
    numbers = {int(p.environ()["OMPI_COMM_WORLD_RANK"]): p for p in ranks}
    for each in ranks:
        each.suspend()
    time.sleep(5.0)  # longer than the limit
    for each in ranks:
        each.resume()
    wait_for_steps(job, tmp_path, 2)
    assert not (tmp_path / "run/stalls").exists()
    numbers[1].suspend()
    line = end_of(job, ranks)
    assert "rank 0 on" in line
    assert "no progress for 4 s (train.stall_timeout) at epoch " in line
    assert "waiting for rank 1 on" in line
    assert "of which there is no sign" in line
    found = stacks(line, tmp_path)
    assert json.loads(found[0])["for_ranks"]
    assert any("in train_epoch" in each for each in found)


def test_a_read_that_does_not_return_on_one_rank(
    small_root: Path, tmp_path: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    """The rank that reads speaks, not the one that waits for it."""
    jobs.append(start(mpirun(2, sys.executable, "-c", HANGS), 4.0, small_root / "train", tmp_path))
    [job] = jobs
    ranks = psutil.Process(job.pid).children()
    (tmp_path / "hang").touch()
    line = end_of(job, ranks)
    assert "rank 1 on" in line
    assert f"waiting for images: reading {tmp_path}/train" in line
    found = stacks(line, tmp_path)
    assert not json.loads(found[0])["for_ranks"]
    assert any("in _deliver" in each for each in found)
    assert any("in hung" in each for each in found)  # the thread that reads
