"""Ranks that torch.distributed joins, without Horovod and MPI: by torchrun, its restarts, and under mpirun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import end_jobs, environment, free_port, mpirun, run, torchrun

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
CONFIG = """
name: small
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup: none, schedule: constant}}
phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: 4}}]
train: {{log_every: 1}}
metrics: {{port: {port}}}
"""


def write_config(folder: Path, root: Path, epochs: int) -> Path:
    path = folder / "small.yaml"
    path.write_text(CONFIG.format(root=root, port=free_port(), epochs=epochs))
    return path


@pytest.fixture
def without_horovod(tmp_path: Path) -> dict[str, str]:
    """An environment in which Horovod and mpi4py cannot be imported."""
    for name in ("horovod", "mpi4py"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('imported')")
    path = os.pathsep.join([str(tmp_path / "none"), environment()["PYTHONPATH"]])
    return {"PYTHONPATH": path}


def test_torchrun_needs_no_horovod(
    small_root: Path, tmp_path: Path, without_horovod: dict[str, str]
) -> None:
    config = write_config(tmp_path, small_root, epochs=1)
    words = ["torchrun", "--nproc-per-node", "2", "--master-port", free_port(), "-m", "hvdtrain"]
    command = list(map(str, [*words, "train", config, "--run-dir", "run"]))
    done = run(command, cwd=tmp_path, **without_horovod)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("engine: torch.distributed, as torchrun started the 2 ranks") == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["world_size"], summary["comm"]["engine"]) == (2, "torch")
    refused = run([*command[:-1], "other", "comm.engine=horovod"], cwd=tmp_path)
    lines = [line for line in refused.stderr.splitlines() if "hvdtrain: error: " in line]
    assert lines, refused.stderr  # of rank 0, and on a busy machine of rank 1
    for line in lines:
        assert "comm.engine: horovod, but torchrun started the 2 ranks" in line
    assert re.search(r"exitcode +: 5 ", refused.stderr)


@pytest.mark.parametrize("told", ["by MPI", "by variables"])
def test_under_mpirun(
    told: str, small_root: Path, tmp_path: Path, without_horovod: dict[str, str]
) -> None:
    config = write_config(tmp_path, small_root, epochs=1)
    command = [*HVDTRAIN, "train", config, "--run-dir", "run", "comm.engine=torch"]
    more = {} if told == "by MPI" else without_horovod
    if told == "by variables":
        done = run(mpirun(2, *command), cwd=tmp_path, **more)
        assert done.returncode == 5, done.stdout + done.stderr
        assert "set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port" in done.stderr
        more |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = run(mpirun(2, *command), cwd=tmp_path, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine: torch.distributed, by comm.engine" in done.stdout


def test_torchrun_restarts_ranks_that_go_on(small_root: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, small_root, epochs=40)
    words = ["--max-restarts=1", *HVDTRAIN, "train", config, "--run-dir", "run"]
    command = torchrun(2, *words, "--resume", "auto", "checkpoint.every_epochs=1")
    job = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        kill_rank_1(job, tmp_path / "run")
        out, _ = job.communicate(timeout=300)
    finally:
        end_jobs([job])
    assert job.returncode == 0, out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["attempts"], summary["samples"]) == (2, 40 * 22)


def kill_rank_1(job: subprocess.Popen[str], run_dir: Path) -> None:
    """Kill it as soon as there is a checkpoint."""
    deadline = time.monotonic() + 200
    while not list(run_dir.glob("checkpoints/e*")):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = psutil.Process(job.pid).children(recursive=True)
    [victim] = [rank for rank in ranks if rank.environ().get("RANK") == "1"]
    victim.send_signal(signal.SIGKILL)
