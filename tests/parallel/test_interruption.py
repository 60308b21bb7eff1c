"""A killed rank ends the job and is named; a stopped run resumes to the weights of a whole one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import safetensors.torch

from tests.launch import (
    ENGINES,
    end_jobs,
    environment,
    free_port,
    horovodrun,
    mpirun,
    run,
    torchrun,
)

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
END_S = 30
CONFIG = """
name: long
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup_epochs: 1, schedule: cosine}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: 8}}
  - {{epochs: {epochs}, image_size: 24, batch_per_worker: 8}}
train: {{log_every: 1}}
checkpoint: {{keep: 1000}}
metrics: {{port: {port}}}
"""


@pytest.fixture
def config(digits_root: Path, tmp_path: Path) -> Path:
    """A run of 500 epochs of 13 steps on two ranks: more than a test waits for."""
    root = tmp_path / "images"
    for split, count in (("train", 20), ("val", 5)):
        for name in "0123456789":
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in sorted((digits_root / split / name).iterdir())[:count]:
                (folder / image.name).symlink_to(image)
    path = tmp_path / "long.yaml"
    path.write_text(CONFIG.format(root=root, port=free_port(), epochs=500))
    return path


def steps_done(run_dir: Path) -> int:
    events = run_dir / "events.jsonl"
    return events.read_text().count('"kind": "train"') if events.exists() else 0


def wait_for_steps(job: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while steps_done(run_dir) < count:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ranks_of(job: subprocess.Popen[str], config: Path) -> list[psutil.Process]:
    """The Python processes of the ranks, below the launcher."""
    return [
        child
        for child in psutil.Process(job.pid).children(recursive=True)
        if str(config) in child.cmdline()
        and "hvdtrain" in child.cmdline()
        and "train" in child.cmdline()
        and Path(child.exe()).name.startswith("python")
    ]


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Jobs that a test starts; they are killed at its end."""
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    end_jobs(jobs)


def start(
    command: list[str], config: Path, jobs: list[subprocess.Popen[str]]
) -> subprocess.Popen[str]:
    job = subprocess.Popen(
        command,
        cwd=config.parent,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    jobs.append(job)
    return job


LAUNCHERS = {
    "mpirun": mpirun,
    "horovodrun-mpi": horovodrun,
    "horovodrun-gloo": lambda ranks, *command: horovodrun(ranks, *command, controller="--gloo"),
    "torchrun": torchrun,
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_rank_ends_the_job_and_is_named(
    launcher: str, config: Path, started: list[subprocess.Popen[str]]
) -> None:
    run_dir = config.parent / "run"
    command = LAUNCHERS[launcher](2, *HVDTRAIN, "train", config, "--run-dir", run_dir)
    job = start(command, config, started)
    wait_for_steps(job, run_dir, 20)  # the second epoch has begun
    ranks = ranks_of(job, config)
    assert len(ranks) == 2
    victim = next(
        child
        for child in ranks
        if "1" in map(child.environ().get, ("OMPI_COMM_WORLD_RANK", "HOROVOD_RANK", "RANK"))
    )
    everyone = psutil.Process(job.pid).children(recursive=True)
    victim.kill()
    out, _ = job.communicate(timeout=END_S)
    assert job.returncode != 0
    if launcher == "horovodrun-gloo":  # Horovod's launcher says process and adds a traceback
        assert "Process 1 exit with status code 137" in out, out
    elif launcher == "torchrun":  # so does torch's
        assert re.search(r"rank +: 1 .*\n +exitcode +: -9 ", out), out
        assert "another rank is gone or unreachable" in out or "stopping after this step" in out
    else:
        assert "process rank 1" in out, out
        assert "Traceback" not in out
    assert (run_dir / "file_sd.json").exists()  # so that Prometheus shows the ranks as down
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert alive == []
    # --resume continues from the newest checkpoint, here to the end of the epoch after it.
    epochs = int(max((run_dir / "checkpoints").glob("e*")).name[1:5])
    command = [*HVDTRAIN, "train", config, "--resume", run_dir, f"phases.1.epochs={epochs}"]
    done = run(mpirun(2, *command), cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from" in done.stdout
    assert json.loads((run_dir / "summary.json").read_text())["epochs"] == epochs + 1
    assert not (run_dir / "file_sd.json").exists()


THREE_EPOCHS = [
    *("lr.scaling=none", "phases.0.batch_per_worker=16", "phases.1.batch_per_worker=16"),
    *("train.ema_decay=0.98", "train.noise_scale_every=3", "comm.tune=measure", "comm.group_mb=1"),
]
"""45 steps an epoch on two ranks."""


@dataclass(frozen=True)
class Stopped:
    """A run on two ranks of Horovod that went to its end, and the same run, of either engine, stopped by SIGTERM."""

    folder: Path
    """With the config, and the whole run in `whole`."""
    run_dir: Path
    output: str
    """What the stopped job printed."""


@pytest.fixture(scope="module")
def whole(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the config and the run, in `whole`, that was left alone."""
    folder = tmp_path_factory.mktemp("stopped")
    config = folder / "three.yaml"
    config.write_text(CONFIG.format(root=digits_root, port=free_port(), epochs=2))
    command = mpirun(2, *HVDTRAIN, "train", config, *THREE_EPOCHS, "--run-dir", "whole")
    done = run(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def stopped(whole: Path, request: pytest.FixtureRequest) -> Stopped:
    folder, config = whole, whole / "three.yaml"
    by_torch = request.param == "torch"
    command = ENGINES[request.param](2, *HVDTRAIN, "train", config, *THREE_EPOCHS)
    jobs: list[subprocess.Popen[str]] = []
    shutil.rmtree(folder / "runs", ignore_errors=True)
    try:
        job = start(command, config, jobs)
        while not (runs := list(folder.glob("runs/long-*"))):
            assert job.poll() is None, job.communicate()
            time.sleep(0.1)
        [run_dir] = runs
        wait_for_steps(job, run_dir, 60)  # the second phase has begun
        assert (run_dir / "file_sd.json").exists()
        asked = [job.pid] if by_torch else [child.pid for child in ranks_of(job, config)[:1]]
        for pid in asked:  # torchrun passes it on to its ranks
            os.kill(pid, signal.SIGTERM)
        out, _ = job.communicate(timeout=2 * END_S)
        assert job.returncode == (1 if by_torch else 75), out
    finally:
        end_jobs(jobs)
    assert not (run_dir / "file_sd.json").exists()
    return Stopped(folder, run_dir, out)


def test_a_stopped_run_says_where_and_how_to_continue(stopped: Stopped) -> None:
    # In which epoch depends on how busy the machine is; the second has begun.
    assert re.search(r"stopped by a signal at epoch [12], image [\d,]+", stopped.output)
    assert "continue with --resume" in stopped.output
    assert "1 MiB, compression none (measured in " in stopped.output


@pytest.mark.parametrize("new_ranks", [1, 2])
def test_a_stopped_run_resumes_to_the_same_weights(
    stopped: Stopped, tmp_path: Path, new_ranks: int
) -> None:
    """On the same number of ranks by `--resume auto`, or on another by the directory's name; under Horovod."""
    run_dir = tmp_path / stopped.run_dir.relative_to(stopped.folder)
    shutil.copytree(stopped.run_dir, run_dir)
    command = [*HVDTRAIN, "train", stopped.folder / "three.yaml", *THREE_EPOCHS]
    command += ["--resume", "auto" if new_ranks == 2 else str(run_dir)]
    resumed = run(mpirun(new_ranks, *command), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    name = run_dir.relative_to(tmp_path) if new_ranks == 2 else run_dir
    assert f"resumed from {name}" in resumed.stdout
    assert ("(kept from tuning.json)" in resumed.stdout) == (new_ranks == 2)
    kept = "resumed on 1 rank instead of 2: 2 accumulation steps keep the global batch of 32"
    assert (kept in resumed.stdout) == (new_ranks == 1)
    expected, summary = (
        json.loads((root / "summary.json").read_text())
        for root in (stopped.folder / "whole", run_dir)
    )
    assert summary["samples"] == expected["samples"]
    assert summary["steps"] == expected["steps"]
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [event["step"] > 45 for event in events if event["kind"] == "stop"] == [True]
    restarts = [event["restarts_after_signal"] for event in events if event["kind"] == "start"]
    assert restarts == [0, 1]
    assert summary["attempts"] == 2
    assert 0 < summary["attempt_train_seconds"] < summary["train_seconds"]
    assert summary["wall_seconds"] < summary["run_wall_seconds"]
    assert "this attempt " in resumed.stdout
    assert "all 2 attempts " in resumed.stdout
    norms = [event["gradient_norm"] for event in events if event["kind"] == "train"]
    assert all(norm > 0 for norm in norms)
    # Another number of ranks sums in another order: equal except for rounding.
    assert summary["loss"] == pytest.approx(expected["loss"], abs=1e-3 if new_ranks == 1 else 0)
    if new_ranks == 2:
        assert summary["noise_scale"] == expected["noise_scale"] is not None
    for file in ("model.safetensors", "ema.safetensors"):
        [whole, mine] = (
            safetensors.torch.load_file(max((root / "checkpoints").iterdir()) / file)
            for root in (stopped.folder / "whole", run_dir)
        )
        for key, tensor in mine.items():
            if new_ranks == 2:
                assert bool((tensor == whole[key]).all()), (file, key)
            else:
                assert float((tensor - whole[key]).abs().max()) < 1e-3, (file, key)
