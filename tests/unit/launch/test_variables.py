"""Variables of launchers that are left over, odd or another tool's: the right run, or one line."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.comm.start import init_comm
from hvdtrain.errors import CommError
from hvdtrain.launch import leftovers
from hvdtrain.launch.leftovers import require_counts, require_launcher
from hvdtrain.launch.slurm_task import horovod_variables
from tests.launch import environment, mpirun, run

BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NUM_NODES": "1",
}
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"}
GLOO = {
    "HOROVOD_SIZE": "2",
    "HOROVOD_RANK": "0",
    "HOROVOD_LOCAL_RANK": "0",
    "HOROVOD_LOCAL_SIZE": "2",
    "HOROVOD_CROSS_RANK": "0",
    "HOROVOD_CROSS_SIZE": "1",
    "HOROVOD_CONTROLLER": "gloo",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
    "HOROVOD_GLOO_RENDEZVOUS_PORT": "9",
}
STORE = {"HVDTRAIN_RENDEZVOUS": "127.0.0.1:9", "HVDTRAIN_RANKS": "4"}
TASK = STEP | STORE | {"SLURM_STEP_TASKS_PER_NODE": "4"}
TORCH = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
ELASTIC = TORCH | {"TORCHELASTIC_RUN_ID": "none"}
TORCHRUN = ELASTIC | {
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_PORT": "9",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
GONE = {"PMIX_RANK": "0", "PMIX_SERVER_URI2": "1.0;tcp4://127.0.0.1:9"}


def check(env: dict[str, str]) -> None:
    require_counts(env)
    require_launcher(env | horovod_variables(env))


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "STORE_WAIT_S", 0.2)


@pytest.mark.parametrize(
    "env",
    [
        {},
        BATCH,
        BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"HOROVOD_SIZE": "1", "HOROVOD_RANK": "0"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"HVDTRAIN_RENDEZVOUS": "127.0.0.1:9", "HVDTRAIN_RANKS": "1"},
        TORCH | {"WORLD_SIZE": "1"},
        ELASTIC | {"WORLD_SIZE": "1"},
        TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
        {"MASTER_ADDR": "127.0.0.1", "RANK": "", "LOCAL_RANK": "0"},
        {"RANK": "captain"},
    ],
)
def test_one_process_is_right(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    check(env)
    monkeypatch.setattr(os, "environ", dict(env))
    assert isinstance(init_comm(), Solo)


REFUSED = [
    ({"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS"),
    ({"SLURM_STEP_NUM_TASKS": "abc"}, "SLURM_STEP_NUM_TASKS"),
    ({"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE"),
    ({"OMPI_COMM_WORLD_SIZE": "0"}, "OMPI_COMM_WORLD_SIZE"),
    ({"OMPI_COMM_WORLD_SIZE": "-4"}, "OMPI_COMM_WORLD_SIZE"),
    ({"PMI_SIZE": "²"}, "PMI_SIZE"),
    ({"HOROVOD_SIZE": "2.0"}, "HOROVOD_SIZE"),
    (STEP | STORE | {"HVDTRAIN_RANKS": "x"}, "HVDTRAIN_RANKS"),
    ({"WORLD_SIZE": "many"}, "WORLD_SIZE"),
    (STEP, "SLURM_STEP_NUM_TASKS"),
    (STEP | {"HOROVOD_SIZE": "1"}, "HOROVOD_SIZE"),
    (STEP | {"OMPI_COMM_WORLD_SIZE": "1"}, "OMPI_COMM_WORLD_SIZE"),
    (STEP | {"PMI_SIZE": "1"}, "PMI_SIZE"),
    (MPI, "OMPI_COMM_WORLD_SIZE"),
    (MPI | GONE, "PMIX_SERVER_URI2"),
    (STEP | {"PMIX_RANK": "0"}, "PMIX_RANK"),
    ({"PMIX_RANK": "0"}, "PMIX_RANK"),
    ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_RANK"),
    ({"HOROVOD_RANK": "0"}, "HOROVOD_RANK"),
    ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "PMI_SIZE"),
    ({"PMI_SIZE": "2", "PMI_RANK": "0", "PMI_FD": "987"}, "PMI_FD"),
    ({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, "HOROVOD_LOCAL_RANK"),
    (GLOO, "HOROVOD_GLOO_RENDEZVOUS_ADDR"),
    (GLOO | {"HOROVOD_GLOO_RENDEZVOUS_PORT": "nine"}, "HOROVOD_GLOO_RENDEZVOUS_PORT"),
    (GLOO | {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "no.such.host.invalid"}, "RENDEZVOUS_ADDR"),
    (GLOO | MPI, "OMPI_COMM_WORLD_SIZE"),
    ({"HOROVOD_SIZE": "1"} | MPI, "HOROVOD_SIZE"),
    (STORE, "HVDTRAIN_RENDEZVOUS"),
    (TASK, "HVDTRAIN_RENDEZVOUS"),
    (TASK | {"HVDTRAIN_RENDEZVOUS": "somewhere"}, "HVDTRAIN_RENDEZVOUS"),
    (TASK | {"HVDTRAIN_RANKS": "2"}, "2 ranks"),
    (TASK | {"SLURM_PROCID": ""}, "SLURM_PROCID"),
    (TASK | {"SLURM_NODEID": "3"}, "SLURM_NODEID"),
    (TASK | {"SLURM_LOCALID": "-1"}, "SLURM_LOCALID"),
    (TASK | {"SLURM_STEP_TASKS_PER_NODE": "?"}, "SLURM_STEP_TASKS_PER_NODE"),
    (STEP | STORE, "SLURM_STEP_TASKS_PER_NODE"),
    (TORCH, "WORLD_SIZE"),
    (ELASTIC, "LOCAL_WORLD_SIZE"),
    (STEP | ELASTIC | {"SLURM_STEP_NUM_TASKS": "1"}, "WORLD_SIZE"),
    (TORCHRUN | {"RANK": "4"}, "RANK=4"),
    (TORCHRUN | {"LOCAL_RANK": "first"}, "LOCAL_RANK"),
    (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT"),
    (TORCHRUN, "does not answer"),
    (MPI | TORCHRUN | {"WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=4, but WORLD_SIZE=2"),
    ({"WORLD_SIZE": "8"}, "WORLD_SIZE"),
    ({"TORCHELASTIC_RUN_ID": "x"}, "TORCHELASTIC_RUN_ID"),
    ({"RANK": "3"}, "RANK"),
    ({"LOCAL_RANK": "1", "RANK": "1"}, "RANK"),
]


@pytest.mark.parametrize(("env", "named"), REFUSED)
def test_one_line_names_the_variable(env: dict[str, str], named: str) -> None:
    with pytest.raises(CommError) as caught:
        check(env)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def test_launchers_that_are_there(listening: str) -> None:
    daemon = {"PMIX_RANK": "0", "PMIX_SERVER_URI2": f"1.0;tcp4://127.0.0.1:{listening}"}
    check(MPI | daemon)
    check(STEP | daemon)
    check(MPI | daemon | {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "1"})  # of mpirun's own step
    check(MPI | daemon | TORCH)  # a shell that exported WORLD_SIZE
    check(GLOO | {"HOROVOD_GLOO_RENDEZVOUS_PORT": listening})
    check(TASK | {"HVDTRAIN_RENDEZVOUS": f"127.0.0.1:{listening}"})
    check(STEP | {"PMI_SIZE": "4", "PMI_RANK": "0", "PMI_FD": "1"})
    check(TORCHRUN | {"MASTER_PORT": listening})
    agent = {"SLURM_STEP_NUM_TASKS": "2", "PMIX_RANK": "0"}  # torchrun is the one task of its node
    check(TORCHRUN | STEP | agent | {"MASTER_PORT": listening})
    check({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"})  # then rank 0 keeps the store


@pytest.mark.parametrize(
    ("env", "named"),
    [(MPI, "OMPI_COMM_WORLD_SIZE"), (TORCHRUN, "torchrun"), (GLOO, "127.0.0.1:9"), (TASK, "store")],
)
def test_the_process_ends_soon_with_one_line(
    env: dict[str, str], named: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hvdtrain", "doctor"]
    done = run(command, cwd=tmp_path, timeout_s=60, **env)
    assert done.returncode == 5, done.stdout
    [line] = [text for text in done.stderr.splitlines() if "error: " in text]
    assert line.startswith("hvdtrain: error: ")
    assert named in line


def test_mpirun_itself_passes_and_its_variables_do_not_outlive_it(tmp_path: Path) -> None:
    code = "from hvdtrain.comm.start import init_comm; print('joined', init_comm().size)"
    done = run(mpirun(2, sys.executable, "-c", code), cwd=tmp_path)
    assert done.stdout.count("joined 2") == 2, done.stderr
    dump = run(mpirun(2, "sh", "-c", "env > env.$OMPI_COMM_WORLD_RANK"), cwd=tmp_path)
    assert dump.returncode == 0
    kept = re.findall(
        r"^((?:OMPI_COMM|PMIX)\w+)=(.*)$", (tmp_path / "env.0").read_text(), re.MULTILINE
    )
    late = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(dict(kept)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "OMPI_COMM_WORLD_SIZE=2, but the launcher that set it has ended" in late.stderr
