"""Hosts, placement, Slurm's variables, forwarded variables, and the commands made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import pytest
from horovod.runner.common.util.hosts import HostInfo, get_host_assignments

from hvdtrain.errors import CommError, ConfigError, ResourceError
from hvdtrain.launch import commands
from hvdtrain.launch.allocation import in_allocation, node_names, slurm_placement
from hvdtrain.launch.forwarding import forwarded, kept_back
from hvdtrain.launch.hosts import Host, parse_hosts, read_hostfile
from hvdtrain.launch.nic import Nic
from hvdtrain.launch.placement import RankPlace, actual_placement, place, placement_text
from hvdtrain.launch.slurm_task import horovod_variables, tasks_per_node
from hvdtrain.launch.variables import launched_size

TWO = [Host("a", 4), Host("b", 2)]


def test_hosts() -> None:
    assert parse_hosts("a:4, b.example:2,10.0.0.3") == [
        Host("a", 4),
        Host("b.example", 2),
        Host("10.0.0.3", 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0", "slots of a: expected a number from 1 to 4096, found '0'"),
        ("a:x", "found 'x'"),
        ("a:4,a:4", "a is named twice"),
        ("", "expected NAME:SLOTS, found ''"),
        ("-oProxyCommand=x:1", "expected NAME:SLOTS"),
        ("a:4,,b:4", "found ''"),
        ("a b:1", "found 'a b:1'"),
    ],
)
def test_hosts_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_hosts(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two machines\na slots=4\n\nb:2 # the old one\n")
    assert read_hostfile(path) == TWO
    path.write_text("a slots=4\nb slots=many\n")
    with pytest.raises(ConfigError, match=r"hosts:2: slots of b"):
        read_hostfile(path)
    path.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "missing")


@pytest.mark.parametrize("counts", [[1], [2, 2], [4, 2], [1, 3, 2], [2, 1, 2]])
def test_placement_is_that_of_horovods_own_launcher(counts: list[int]) -> None:
    hosts = [Host(f"h{number}", count) for number, count in enumerate(counts)]
    placed = place(hosts)
    theirs = get_host_assignments([HostInfo(h.name, h.slots) for h in hosts], sum(counts))
    for mine, other in zip(placed.slots, theirs, strict=True):
        for name in ("hostname", "rank", "local_rank", "local_size", "cross_rank", "cross_size"):
            assert getattr(mine, name) == getattr(other, name), name
        assert mine.size == other.size == placed.size
        assert placed.slot([h.name for h in hosts].index(mine.hostname), mine.local_rank) is mine


def test_cores_and_gpus() -> None:
    placed = place(TWO, [16, 3], [4, 2])
    assert placed.cores == (4, 1)
    assert placement_text(placed) == (
        "6 ranks on 1 host (a): 4 ranks, 4 cores a rank, 4 GPUs, by local rank; "
        "1 host (b): 2 ranks, 1 core a rank, 2 GPUs, by local rank"
    )
    assert placement_text(place([Host(f"n{i}", 8) for i in range(16)])) == (
        "128 ranks on 16 hosts (n0, n1, n2, …, n15): 8 ranks each"
    )
    with pytest.raises(ConfigError, match="a: 4 ranks, but 2 GPUs: start one rank per GPU"):
        place(TWO, gpus=[2, 2])


def test_placement_as_seen_by_the_ranks() -> None:
    ranks = [RankPlace("a", 2, 0), RankPlace("b", 4, 0), RankPlace("a", 2, 0)]  # assigned in turn
    assert placement_text(actual_placement(ranks)) == (
        "3 ranks on 1 host (a): 2 ranks, 2 cores a rank, no GPU; "
        "1 host (b): 1 rank, 4 cores a rank, no GPU"
    )


def task(procid: int, node: int, local: int, **more: str) -> dict[str, str]:
    """The environment of one of three tasks, assigned to two nodes in turn."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": str(procid),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "SLURM_NTASKS": "3",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURMD_NODENAME": f"n{node + 1}",
    } | more


def test_horovods_variables_of_a_task() -> None:
    given = {"HVDTRAIN_RENDEZVOUS": "10.0.0.1:4567", "HVDTRAIN_RANKS": "3"}
    variables = horovod_variables(task(2, 0, 1, **given))
    assert variables == {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "4567",
        "HOROVOD_HOSTNAME": "n1",
        "HOROVOD_RANK": "2",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "1",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
    }
    other = horovod_variables(task(1, 1, 0, **given))
    assert (other["HOROVOD_CROSS_RANK"], other["HOROVOD_CROSS_SIZE"]) == ("1", "2")


def test_tasks_that_would_train_by_themselves_are_refused() -> None:
    with pytest.raises(CommError, match="3 tasks that cannot find each other"):
        horovod_variables(task(0, 0, 0))
    given = {"HVDTRAIN_RENDEZVOUS": "10.0.0.1:4567", "HVDTRAIN_RANKS": "4"}
    with pytest.raises(CommError, match="3 tasks, but the store was opened for 4"):
        horovod_variables(task(0, 0, 0, **given))
    assert horovod_variables(task(0, 0, 0, OMPI_COMM_WORLD_SIZE="8")) == {}
    assert horovod_variables(task(0, 0, 0, PMIX_RANK="0")) == {}
    assert horovod_variables(task(0, 0, 0) | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_a_batch_script_is_one_process() -> None:
    script = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_NPROCS": "4"}
    assert launched_size(script) == 1
    assert horovod_variables(script) == {}
    assert in_allocation(script)
    assert launched_size(task(0, 0, 0)) == 3
    assert not in_allocation(task(0, 0, 0))
    shell = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}  # of salloc, on a node
    assert in_allocation(script | shell)
    assert launched_size(script | shell) == 1
    # mpirun in a Slurm job: its daemons are tasks of srun, and ranks inherit their variables.
    assert launched_size(task(0, 0, 0, OMPI_COMM_WORLD_SIZE="8")) == 8


def test_counts_of_tasks() -> None:
    assert tasks_per_node("4(x2),1") == [4, 4, 1]
    with pytest.raises(CommError, match="expected counts such as"):
        tasks_per_node("4x2")
    for text in ("0", "4(x99999999)", "9999999999"):
        with pytest.raises(CommError, match="expected counts"):
            tasks_per_node(text)


def test_slurm_placement() -> None:
    env = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "gpu[08-10]",
        "SLURM_TASKS_PER_NODE": "4(x2),2",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_GPUS_PER_NODE": "a100:4",
    }
    placed = slurm_placement(env)
    assert placed.hosts == (Host("gpu08", 4), Host("gpu09", 4), Host("gpu10", 2))
    assert placed.cores == (6, 6, 6)
    assert placed.gpus == (4, 4, 4)
    del env["SLURM_TASKS_PER_NODE"]
    with pytest.raises(ResourceError, match="number of tasks is not set"):
        slurm_placement(env)


def test_names_of_nodes() -> None:
    assert node_names("n[1-3,07],m") == ["n1", "n2", "n3", "n07", "m"]
    assert node_names("rack[1-2]n[09-10]") == ["rack1n09", "rack1n10", "rack2n09", "rack2n10"]
    with pytest.raises(ResourceError, match="SLURM_JOB_NODELIST: expected a list of at most"):
        node_names("")
    for text in ("n[1-999999999999]", "n[1-9999][1-9999]", "n[--]", "n[,]"):
        with pytest.raises(ResourceError, match="SLURM_JOB_NODELIST: expected a list of at most"):
            node_names(text)


def test_secrets_stay_here() -> None:
    env = dict.fromkeys(("PATH", "HOROVOD_X", "NCCL_DEBUG", "OMP_NUM_THREADS", "HOME"), "x")
    env |= dict.fromkeys(("HVDTRAIN_METRICS_TOKEN", "WANDB_API_KEY", "NCCL_MY_PASSWORD"), "x")
    assert forwarded(env, ["HOME"]) == [
        "HOME",
        "HOROVOD_X",
        "NCCL_DEBUG",
        "OMP_NUM_THREADS",
        "PATH",
    ]
    assert kept_back(env) == ["HVDTRAIN_METRICS_TOKEN", "NCCL_MY_PASSWORD"]
    for name in ("WANDB_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "token"):
        with pytest.raises(ConfigError, match="looks like a secret"):
            forwarded(env | {name: "x"}, [name])
    with pytest.raises(ConfigError, match="is not set: export it first"):
        forwarded(env, ["MISSING"])


REQUEST = commands.LaunchRequest(
    place(TWO),
    ("/v/bin/hvdtrain", "train", "x.yaml"),
    names=("PATH",),
    nic=Nic("eth0", "10.0.0.1", 24, 1500, 0),
    remote=True,
)


def test_mpirun_4() -> None:
    command = commands.mpirun(REQUEST, (4, 1), "/v")
    assert command.words == (
        *("mpirun", "-np", "6", "--bind-to", "none", "-H", "a:4,b:2"),
        *("-mca", "plm_rsh_args", "-o BatchMode=yes -o ConnectTimeout=10", "--prefix", "/v"),
        *("-mca", "btl_tcp_if_include", "10.0.0.0/24"),
        *("-mca", "oob_tcp_if_include", "10.0.0.0/24"),
        *("-mca", "oob_tcp_keepalive_time", "10", "-mca", "oob_tcp_keepalive_intvl", "3"),
        *("-mca", "oob_tcp_keepalive_probes", "3"),
        *("-mca", "odls_base_sigkill_timeout", "5", "-x", "PATH"),
        *("/v/bin/hvdtrain", "train", "x.yaml"),
    )
    assert command.checkpoint_signal == SIGUSR1


def test_mpirun_5() -> None:
    words = commands.mpirun(REQUEST, (5, 0), None).words
    assert "oob_tcp_if_include" not in words
    assert words[words.index("plm_ssh_args") - 1] == "--prtemca"
    assert words[words.index("btl_tcp_if_include") - 1] == "--mca"
    assert "-mca" not in words
    assert "--prefix" not in words


def test_mpirun_on_one_host_and_in_slurm() -> None:
    here = commands.LaunchRequest(place([Host("localhost", 2)]), ("hvdtrain",))
    words = commands.mpirun(here, (4, 1), "/v").words
    assert not {"--prefix", "plm_rsh_args", "btl_tcp_if_include"} & set(words)
    other = commands.LaunchRequest(place([Host("b", 2)]), ("hvdtrain",), remote=True)
    assert {"--prefix", "plm_rsh_args"} <= set(commands.mpirun(other, (4, 1), "/v").words)
    inside = commands.LaunchRequest(place(TWO), ("hvdtrain",), remote=True, in_slurm=True)
    assert "-H" not in commands.mpirun(inside, (4, 1), "/v").words


def test_horovodrun() -> None:
    request = replace(REQUEST, launcher="horovodrun")
    command = commands.horovodrun(request, (4, 1), "/v")
    assert command.words[:6] == ("horovodrun", "--mpi", "-np", "6", "-H", "a:4,b:2")
    assert command.checkpoint_signal == SIGTERM
    gloo = commands.horovodrun(replace(request, controller="gloo"), (), None)
    assert any("use it on isolated networks only" in text for text in gloo.warnings)
    with pytest.raises(ConfigError, match="Open MPI 5 refuses"):
        commands.horovodrun(request, (5, 0), None)


def test_srun() -> None:
    command = commands.srun(replace(REQUEST, controller="gloo"))
    assert command.words[:6] == ("srun", "--ntasks", "6", "--nodes", "2", "--wait=60")
    assert "--mpi=pmix" in commands.srun(REQUEST).words
    assert command.checkpoint_signal == SIGUSR1
