"""Batch scripts that `hvdtrain launch slurm` prints, run by a real Slurm with two nodes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdtrain.launch.allocation import node_names
from tests.cluster.slurm import ENDED, Slurm
from tests.launch import LOST_HOSTS, QUICK_END, free_port

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
CONFIG = """
name: {name}
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup_epochs: 1, schedule: cosine}}
phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: 16}}]
train: {{log_every: 1}}
comm: {{interface: lo}}
metrics: {{port: {port}}}
"""
ENDLESS = 500
LAUNCHERS = ("srun", "mpirun")


class Jobs:
    """Batch scripts and their jobs in one folder."""

    def __init__(self, slurm: Slurm, folder: Path, images: Path) -> None:
        self.slurm, self.folder, self.images = slurm, folder, images
        # Jobs inherit the test's environment, except for the program that starts their ranks.
        (folder / "bin").mkdir()
        program = folder / "bin/hvdtrain"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{QUICK_END}' \"$@\"\n")
        program.chmod(0o755)
        (folder / "env.sh").write_text(f"PATH={folder}/bin:$PATH\n")

    def script(self, name: str, *options: str, epochs: int = 1) -> Path:
        """Write a config and the script that is printed for it; returns the script."""
        config = self.folder / f"{name}.yaml"
        settings = {"root": self.images, "port": free_port(), "epochs": epochs}
        config.write_text(CONFIG.format(name=name, **settings))
        common = ("--gpus", "0", "--cores", "1", "--environment", "./env.sh", "--time", "10")
        command = [*HVDTRAIN, "launch", "slurm", config.name, *options, *common]
        done = self.slurm.run(self.folder, *command)
        assert done.returncode == 0, done.stderr
        path = self.folder / f"{name}.sbatch"
        path.write_text(done.stdout)
        return path

    def submit(self, script: Path) -> str:
        return self.slurm.submit(self.folder, script)

    def run_dir(self, name: str, job: str) -> Path:
        return self.folder / "runs" / f"{name}-{job}"

    def log(self, name: str, job: str) -> str:
        return (self.folder / f"{name}-{job}.log").read_text()

    def wait_for_steps(self, name: str, job: str, count: int) -> None:
        """Wait for `count` steps, over all attempts; fails if the job ends before."""
        events = self.run_dir(name, job) / "events.jsonl"

        def done() -> bool:
            assert self.slurm.job(job)["JobState"] not in ENDED, self.log(name, job)
            return events.exists() and events.read_text().count('"kind": "train"') >= count

        self.slurm.until(f"{count} steps of {name}", done)


@pytest.fixture
def jobs(slurm: Slurm, tmp_path: Path, digits_root: Path) -> Iterator[Jobs]:
    """Jobs in the folder of this test; they are cancelled at its end."""
    yield Jobs(slurm, tmp_path, digits_root)
    if left := slurm.run(tmp_path, "squeue", "-h", "-o", "%A").stdout.split():
        slurm.run(tmp_path, "scancel", *left)
        slurm.until("end of jobs", lambda: not slurm.run(tmp_path, "squeue", "-h").stdout)


def summary(run_dir: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run_dir / "summary.json").read_text())
    return found


def weights(run_dir: Path) -> str:
    """sha256 of the final weights."""
    newest = max((run_dir / "checkpoints").iterdir())
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_node(jobs: Jobs, launcher: str) -> None:
    script = jobs.script("one", "--ranks-per-node", "2", "--launcher", launcher)
    job = jobs.submit(script)
    assert jobs.slurm.finish(job)["JobState"] == "COMPLETED", jobs.log("one", job)
    assert summary(jobs.run_dir("one", job))["world_size"] == 2
    assert "placement: 2 ranks on 1 host (n1): 2 ranks, 1 core a rank" in jobs.log("one", job)
    assert "Slurm ends this allocation at 2" in jobs.log("one", job)


def test_srun_alone(jobs: Jobs) -> None:
    """Without `hvdtrain launch` torch.distributed joins the tasks; here both nodes are one host."""
    jobs.script("alone")
    env = jobs.slurm.env
    jobs.slurm.env = {**env, "MASTER_ADDR": "127.0.0.1"}
    command = [*HVDTRAIN, "train", "alone.yaml", "--run-dir", "run"]
    try:
        done = jobs.slurm.run(jobs.folder, "srun", "-N2", "-n3", "-c1", *command)
    finally:
        jobs.slurm.env = env
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine: torch.distributed, as srun started the 3 ranks" in done.stdout
    assert "placement: 3 ranks" in done.stdout
    assert summary(jobs.folder / "run")["world_size"] == 3


def test_unequal_nodes(jobs: Jobs) -> None:
    """Slurm fills one node with two ranks of two cores and puts the third rank on the other."""
    script = jobs.script("odd", "--ranks", "3")
    script.write_text(script.read_text().replace("--cpus-per-task=1", "--cpus-per-task=2"))
    job = jobs.submit(script)
    assert jobs.slurm.finish(job)["JobState"] == "COMPLETED", jobs.log("odd", job)
    assert summary(jobs.run_dir("odd", job))["world_size"] == 3
    shown = "3 ranks on 1 host (n1): 2 ranks, 2 cores a rank; 1 host (n2): 1 rank, 2 cores a rank"
    assert f"placement: {shown}" in jobs.log("odd", job)


def test_array(jobs: Jobs) -> None:
    """The tasks run beside each other, bound to a core each: this Slurm does not bind them."""
    script = jobs.script("many", "--sweep", "lr.base=0.02,0.05")
    cores = sorted(os.sched_getaffinity(0))
    bind = f"cores=({' '.join(map(str, cores))})\n"
    bind += 'taskset -cp "${cores[SLURM_ARRAY_TASK_ID % ${#cores[@]}]}" $$ >/dev/null\n'
    with (jobs.folder / "env.sh").open("a") as file:
        file.write(bind)
    job = jobs.submit(script)
    for task, rate in enumerate((0.02, 0.05)):
        run = f"{job}-{task}"
        assert jobs.slurm.finish(f"{job}_{task}")["JobState"] == "COMPLETED", jobs.log("many", run)
        resolved = (jobs.run_dir("many", run) / "config.yaml").read_text()
        assert f"base: {rate}" in resolved


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_cancelled(jobs: Jobs, launcher: str) -> None:
    """After `scancel`: a checkpoint, exit code 75, and no requeue."""
    script = jobs.script("long", "--nodes", "2", "--launcher", launcher, epochs=ENDLESS)
    # Slurm keeps no exit code of a cancelled job's script.
    script.write_text(script.read_text().replace('exit "$1"', 'echo "code $1"; exit "$1"'))
    job = jobs.submit(script)
    run_dir = jobs.run_dir("long", job)
    jobs.wait_for_steps("long", job, 5)
    jobs.slurm.run(jobs.folder, "scancel", job)
    assert jobs.slurm.finish(job)["JobState"] == "CANCELLED"
    jobs.slurm.until("the script's end", lambda: "code " in jobs.log("long", job))
    assert "\ncode 75\n" in jobs.log("long", job)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events][-2:] == ["checkpoint", "stop"]
    assert list((run_dir / "checkpoints").iterdir())
    assert jobs.slurm.job(job)["Restarts"] == "0"


def test_preempted(jobs: Jobs) -> None:
    """A job of a higher partition, or the signal before a time limit, ends a run with a checkpoint;
    it is requeued, and its final weights are those of an undisturbed run, by either launcher.

    While the first waits in the queue the others run.
    """
    numbers = {"twice-srun": start_two_epochs(jobs, "twice-srun", "--launcher", "srun")}
    jobs.wait_for_steps("twice-srun", numbers["twice-srun"], 10)
    rival = ("-p", "high", "-N", 2, "--exclusive", "-o", "/dev/null", "--wrap", "true")
    number = jobs.slurm.submit(jobs.folder, *rival)
    assert jobs.slurm.finish(number)["JobState"] == "COMPLETED"
    numbers["twice-mpirun"] = start_two_epochs(jobs, "twice-mpirun", "--launcher", "mpirun")
    numbers["whole"] = start_two_epochs(jobs, "whole")
    jobs.wait_for_steps("twice-mpirun", numbers["twice-mpirun"], 10)
    jobs.slurm.run(jobs.folder, "scancel", "--batch", "--signal=USR1", numbers["twice-mpirun"])
    for name, number in numbers.items():
        assert jobs.slurm.finish(number)["JobState"] == "COMPLETED", jobs.log(name, number)
        restarts = [0, 1] if name != "whole" else [0]
        assert jobs.slurm.job(number)["Restarts"] == str(restarts[-1]), jobs.log(name, number)
        events = (jobs.run_dir(name, number) / "events.jsonl").read_text().splitlines()
        starts = [event for event in map(json.loads, events) if event["kind"] == "start"]
        assert [event["restarts_after_signal"] for event in starts] == restarts
        assert [event["world_size"] for event in starts] == [2] * len(starts)
    assert len({weights(jobs.run_dir(name, number)) for name, number in numbers.items()}) == 1


def start_two_epochs(jobs: Jobs, name: str, *options: str) -> str:
    """The number of a job on two nodes."""
    return jobs.submit(jobs.script(name, "--nodes", "2", *options, epochs=2))


@LOST_HOSTS
def test_a_lost_node(jobs: Jobs) -> None:
    """The spare node takes its place, and the weights are those of an undisturbed run."""
    whole = start_two_epochs(jobs, "whole")
    jobs.slurm.until("an undisturbed run", (jobs.run_dir("whole", whole) / "summary.json").exists)
    options = ("--nodes", "2", "--spares", "1", "--partition", "three")
    lost = jobs.submit(jobs.script("lost", *options, epochs=2))
    jobs.wait_for_steps("lost", lost, 10)
    jobs.slurm.lose("n2")
    try:
        jobs.slurm.until("the end", lambda: "in total, without" in jobs.log("lost", lost))
    finally:
        jobs.slurm.restore("n2")
    for name, number in (("whole", whole), ("lost", lost)):
        assert jobs.slurm.finish(number)["JobState"] == "COMPLETED", jobs.log(name, number)
    events = (jobs.run_dir("lost", lost) / "events.jsonl").read_text()
    assert "n2 " in events
    assert "it is left out, n3 takes its place" in events
    assert weights(jobs.run_dir("lost", lost)) == weights(jobs.run_dir("whole", whole))


@LOST_HOSTS
@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_lost_node_without_a_spare(jobs: Jobs, launcher: str) -> None:
    """The job goes on with the other node, and with the same images an update."""
    lost = start_two_epochs(jobs, "fewer", "--min-nodes", "1", "--launcher", launcher)
    jobs.wait_for_steps("fewer", lost, 10)
    jobs.slurm.lose("n2")
    try:
        jobs.slurm.until("the end", lambda: "in total, without" in jobs.log("fewer", lost))
    finally:
        jobs.slurm.restore("n2")
    assert jobs.slurm.finish(lost)["JobState"] == "COMPLETED", jobs.log("fewer", lost)
    events = (jobs.run_dir("fewer", lost) / "events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in events]
    starts = [one["world_size"] for one in told if one["kind"] == "start"]
    assert starts == [2, 1], jobs.log("fewer", lost)
    assert len({one["global_batch_size"] for one in told if one["kind"] == "train"}) == 1
    assert any("n2 does not answer: it is left out" in one.get("text", "") for one in told)


def test_container_and_staging(jobs: Jobs) -> None:
    """In a container the store is a separate command. A stand-in for Apptainer runs its arguments."""
    stand_in = jobs.folder / "bin/apptainer"
    stand_in.write_text('#!/bin/sh\n[ "$1 $2" = "exec image.sif" ] && shift 2 && exec "$@"\n')
    stand_in.chmod(0o755)
    packed = jobs.folder / "packed"
    done = jobs.slurm.run(
        jobs.folder,
        *HVDTRAIN,
        "data",
        "pack",
        f"{jobs.images}/val",
        packed,
        "--short-side",
        "orig",
    )
    assert done.returncode == 0, done.stderr
    options = ["--container", "apptainer", "--image", "image.sif", "--stage", str(packed)]
    script = jobs.script("boxed", "--nodes", "2", *options)
    text = script.read_text().replace("set -u\n", f"set -u\nPATH={jobs.folder}/bin:$PATH\n")
    script.write_text(text.replace("launch store", "launch store --interface lo"))
    job = jobs.submit(script)
    assert jobs.slurm.finish(job)["JobState"] == "COMPLETED", jobs.log("boxed", job)
    assert summary(jobs.run_dir("boxed", job))["world_size"] == 2
    assert list(jobs.folder.glob(".store*")) == []


def test_srun_without_launch_is_refused(jobs: Jobs) -> None:
    """Tasks that Horovod cannot join would each train by themselves; a host of rank 0 that has no address,
    as the nodes of this Slurm, is said at once."""
    script = jobs.script("refused")
    config = script.with_suffix(".yaml")
    train = ["srun", "-N2", "-n2", *HVDTRAIN, "train", config]
    done = jobs.slurm.run(jobs.folder, *train)
    assert done.returncode == 5
    assert "the name n1 of the host of rank 0 is unknown: " in done.stderr
    done = jobs.slurm.run(jobs.folder, *train, "comm.engine=horovod")
    assert done.returncode == 5
    lines = [line for line in done.stderr.splitlines() if line.startswith("hvdtrain: error: ")]
    assert len(lines) == 2
    assert all("2 tasks that cannot find each other" in line for line in lines)


def test_names_of_nodes(slurm: Slurm) -> None:
    for text in ("n1", "n[1-3,07],m", "rack-a[09-11]"):
        done = subprocess.run(
            ["scontrol", "show", "hostnames", text],
            env=slurm.env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert node_names(text) == done.stdout.split()
