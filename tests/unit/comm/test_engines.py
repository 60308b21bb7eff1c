"""Which engine joins the ranks, by the config and the launcher's variables, and where torch finds them."""

from __future__ import annotations

import pytest

from hvdtrain.comm.engines import choose_engine, horovod_installed
from hvdtrain.config.schema import Engine
from hvdtrain.errors import CommError, ResourceError
from hvdtrain.launch.torch_task import PORTS, TorchTask, torch_task
from hvdtrain.launch.variables import (
    launched_rank,
    launched_size,
    launcher_sizes,
    on_one_host,
    on_several_hosts,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
MPIRUN = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
HOROVODRUN = {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "1"}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}
STORE = {"HVDTRAIN_RENDEZVOUS": "10.0.0.1:4567", "HVDTRAIN_RANKS": "4"}
AGENT = {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "2", "PMIX_RANK": "1"}
CHOICES = [
    # launcher's variables, comm.engine, Horovod is installed: engine, why
    (MPIRUN, "auto", True, "horovod", "as mpirun started the 4 ranks"),
    (MPIRUN, "auto", False, "horovod", "as mpirun started the 4 ranks"),  # which it then misses
    (MPIRUN | SRUN, "auto", True, "horovod", "as mpirun started the 4 ranks"),
    ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "auto", True, "horovod", "as mpirun started the 4 ranks"),
    (HOROVODRUN, "auto", True, "horovod", "as horovodrun started the 2 ranks"),
    (TORCHRUN, "auto", True, "torch", "as torchrun started the 8 ranks"),
    (TORCHRUN | AGENT, "auto", True, "torch", "as torchrun started the 8 ranks"),
    (SRUN | STORE, "auto", True, "horovod", "as srun started the 4 ranks"),
    (SRUN | {"PMIX_RANK": "3"}, "auto", True, "horovod", "as srun started the 4 ranks"),
    (
        *(SRUN | {"PMIX_RANK": "3"}, "auto", False, "torch"),
        "as srun started the 4 ranks, and Horovod is not installed",
    ),
    (
        *(SRUN, "auto", True, "torch"),
        "as srun started the 4 ranks, without MPI and without hvdtrain launch",
    ),
    (MPIRUN, "torch", True, "torch", "by comm.engine"),
    (SRUN | STORE, "torch", True, "torch", "by comm.engine"),
    (TORCHRUN, "torch", False, "torch", "by comm.engine"),
    (MPIRUN, "horovod", False, "horovod", "by comm.engine"),
]


@pytest.mark.parametrize(("env", "wanted", "installed", "engine", "why"), CHOICES)
def test_the_engine_and_why(
    env: dict[str, str], wanted: Engine, installed: bool, engine: str, why: str
) -> None:
    choice = choose_engine(wanted, env, lambda: installed)
    assert (choice.engine, choice.why) == (engine, why)


def test_a_launcher_that_the_engine_cannot_join_is_one_line() -> None:
    with pytest.raises(
        CommError, match=r"^comm\.engine: horovod, but torchrun started the 8 ranks"
    ):
        choose_engine("horovod", TORCHRUN)
    with pytest.raises(
        CommError, match=r"^comm\.engine: torch, but horovodrun started the 2 ranks"
    ):
        choose_engine("torch", HOROVODRUN)
    with pytest.raises(CommError, match=r"^comm\.engine: torch: this launcher does not say"):
        torch_task({"PMI_SIZE": "4", "PMI_RANK": "0"})


def test_a_horovod_that_is_hidden_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "horovod", None)
    assert not horovod_installed()


def test_ranks_of_torchrun() -> None:
    assert torch_task(TORCHRUN) == TorchTask(5, 8, 1, 4, "node1", 29500, kept=True)
    for env in (TORCHRUN, TORCHRUN | AGENT):  # one torchrun is a task of srun
        assert (launched_rank(env), launched_size(env)) == (5, 8)
        assert launcher_sizes(env) == {"WORLD_SIZE": 8}
        assert (on_one_host(env), on_several_hosts(env)) == (False, True)
    one = TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}
    assert (on_one_host(one), on_several_hosts(one)) == (True, False)
    own_store = {**TORCHRUN, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert torch_task(own_store).serves
    assert not torch_task(own_store | {"RANK": "1"}).serves


def test_ranks_of_mpirun_meet_where_the_user_says_or_mpi_does() -> None:
    assert torch_task(MPIRUN) == TorchTask(3, 4, 1, 2, "", 0)
    given = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert torch_task(MPIRUN | given) == TorchTask(3, 4, 1, 2, "node1", 29500)
    with pytest.raises(CommError, match="MASTER_PORT: expected a port, found 0"):
        torch_task(MPIRUN | given | {"MASTER_PORT": "0"})


def test_ranks_of_srun_meet_at_the_first_node() -> None:
    task = torch_task(SRUN)
    assert (task.rank, task.size, task.local_rank, task.local_size) == (3, 4, 1, 2)
    assert task.address == "gpu08"
    assert PORTS[0] <= task.port < PORTS[1]
    assert torch_task(SRUN | {"SLURM_STEP_ID": "1"}).port != task.port
    given = torch_task(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (given.address, given.port) == ("10.0.0.1", 29500)
    assert torch_task(SRUN | {"MASTER_ADDR": "10.0.0.1"}).port == task.port
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    assert torch_task(SRUN | one).address == "127.0.0.1"
    with pytest.raises(ResourceError, match="SLURM_STEP_NODELIST: expected a list"):
        torch_task(SRUN | {"SLURM_STEP_NODELIST": ""})
    with pytest.raises(CommError, match="SLURM_STEP_TASKS_PER_NODE"):
        torch_task(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1"})
