"""The judge over invented ranks: it finds every fault, in one line each, and none in a good job."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.errors import CommError, ConfigError, DataError, ResourceError
from hvdtrain.launch.nic import Nic
from hvdtrain.launch.variables import launcher_sizes
from hvdtrain.preflight.facts import Facts, Link
from hvdtrain.preflight.finding import raise_faults
from hvdtrain.preflight.judge import judge, measured
from hvdtrain.preflight.storage import Dataset, Disk, Reads

DOCS = Path(__file__).parents[3] / "docs/reference/preflight.md"
TRAIN = Dataset("data.train", "/data/train", None, "0123456789ab", 1000)
GB = 10**9


def job() -> list[Facts]:
    """Four ranks on two hosts of two GPUs: nothing wrong."""
    ranks = []
    for rank in range(4):
        host = rank // 2
        nic = Nic("eth0", f"10.0.0.{host + 1}", 24, 9000, 25_000)
        link = Link((rank + 1) % 4, f"10.0.0.{2 - host}:40000", 21_000.0, 1e-4)
        ranks.append(
            Facts(
                host=f"node{host + 1}",
                machine=f"boot{host}",
                rank=rank,
                size=4,
                local_rank=rank % 2,
                launcher={"OMPI_COMM_WORLD_SIZE": 4},
                versions={"hvdtrain": "0.1.0 (code aaaa)", "torch": "2.13.0", "numpy": "2.4.6"},
                config="c0ffee",
                clock=1000.0 + 0.1 * host,
                disk=Disk("/runs", 50 * GB, GB, 2) if rank == 0 else None,
                data=(TRAIN,) if rank % 2 == 0 else (),
                nic=nic,
                link=link if rank % 2 else None,
                visible_gpus=2,
                gpu=f"GPU-{rank}",
                gpu_name="H100",
                reads=Reads(400.0, 4000.0) if rank % 2 == 0 else None,
            )
        )
    return ranks


def changed(rank: int, **values: Any) -> list[Facts]:
    """The job with some facts of one rank changed."""
    ranks = job()
    ranks[rank] = dataclasses.replace(ranks[rank], **values)
    return ranks


def test_nothing_wrong() -> None:
    assert judge(job()) == []
    assert measured(job()) == (
        "4 ranks on 2 hosts, slowest link node1 → node2 21.00 Gbit/s, 0.10 ms (eth0), "
        "dataset read at 400 MB/s, clocks within 0.10 s"
    )


CASES: list[tuple[str, list[Facts], type[Exception] | None, str]] = [
    (
        "size",
        changed(2, size=1),
        CommError,
        "rank 2 on node2: the launcher started 4 ranks (OMPI_COMM_WORLD_SIZE), this one sees 1",
    ),
    (
        "local rank",
        changed(1, local_rank=0),
        CommError,
        "rank 1 on node1: has local rank 0, the same as rank 0 on this host",
    ),
    (
        "gpu",
        changed(3, local_rank=2),
        ConfigError,
        "rank 3 on node2: has local rank 2, but sees only 2 of the GPUs",
    ),
    ("gpu", changed(1, gpu="GPU-0"), ConfigError, "has the same GPU as rank 0 (GPU-0)"),
    ("gpu", changed(3, visible_gpus=0), ConfigError, "node2: no GPU is visible"),
    ("gpu model", changed(3, gpu_name="A100"), None, "H100 on node1, node2; A100 on node2"),
    (
        "version",
        changed(2, versions=job()[0].versions | {"torch": "2.12.0"}),
        CommError,
        "torch: 2.13.0 on node1, node2; 2.12.0 on node2: install the same",
    ),
    (
        "version",
        changed(2, versions=job()[0].versions | {"numpy": "2.3.0"}),
        None,
        "numpy: 2.4.6 on node1, node2; 2.3.0 on node2",
    ),
    ("config", changed(2, config="bad"), ConfigError, "the config's hash: c0ffee on node1, node2;"),
    (
        "data",
        changed(2, data=(Dataset("data.train", "/data/train", "an empty folder"),)),
        DataError,
        "node2: data.train: /data/train: an empty folder: is it mounted there?",
    ),
    (
        "manifest",
        changed(2, data=(dataclasses.replace(TRAIN, manifest="ba9876543210", count=999),)),
        DataError,
        "1,000 names (0123456789ab) on node1; 999 names (ba9876543210) on node2",
    ),
    (
        "disk",
        changed(0, disk=Disk("/runs", GB // 2, GB)),
        ResourceError,
        "node1: /runs: 500.0 MB free, one checkpoint needs 1.0 GB: free some space, or choose another disk",
    ),
    ("disk", changed(0, disk=Disk("/runs", 10**6)), ResourceError, "1.0 MB free"),
    (
        "disk",
        changed(0, disk=Disk("/runs", 9 * GB, GB, error="not writable")),
        ResourceError,
        "node1: /runs: not writable: choose another disk with output=DIR",
    ),
    (
        "space",
        changed(0, disk=Disk("/runs", 2 * GB, GB)),
        None,
        "2 checkpoints and the one being written need 3.0 GB",
    ),
    (
        "mtu",
        changed(2, nic=Nic("ens5", "10.0.0.2", 24, 1500, 25_000)),
        None,
        "9000 (eth0) on node1, node2; 1500 (ens5) on node2: large packets may be lost",
    ),
    (
        "congestion",
        changed(2, congestion="bbr"),
        None,
        "node2: TCP's congestion control is bbr: on a busy link it nearly stops for 0.2 s every 10 s",
    ),
    (
        "link",
        changed(1, link=Link(2, "10.0.0.2:40000", error="cannot connect (timed out)")),
        CommError,
        "rank 1 on node1 (eth0) → rank 2 on node2: 10.0.0.2:40000: cannot connect (timed out)",
    ),
    (
        "slow link",
        changed(1, link=Link(2, "10.0.0.2:40000", 941.0, 1e-4)),
        None,
        "rank 1 on node1 (eth0) → rank 2 on node2: 0.94 Gbit/s of 25.00 Gbit/s",
    ),
    (
        "slow link",
        changed(1, link=Link(2, "10.0.0.2:40000", 400.0, 1e-4), link_gbit=1.0),
        None,
        "0.40 Gbit/s of 1.00 Gbit/s",
    ),
    (
        "latency",
        changed(1, link=Link(2, "10.0.0.2:40000", 21_000.0, 0.011)),
        None,
        "a round trip takes 11.0 ms",
    ),
    ("clock", [*job()[:3], *changed(3, clock=1060.0)[3:]], None, "node2: the clock is 60.0"),
    ("storage", changed(2, reads=Reads(3.0, 40.0)), None, "node2: the dataset is read at 3.0 MB/s"),
    ("host", changed(2, faults=("mpi: not found",)), CommError, "node2: mpi: not found"),
]


@pytest.mark.parametrize(("name", "facts", "error", "text"), CASES)
def test_one_finding(
    name: str, facts: list[Facts], error: type[Exception] | None, text: str
) -> None:
    [finding] = judge(facts)
    assert (finding.name, finding.error) == (name, error)
    assert text in str(finding)
    assert "\n" not in str(finding)


def test_ranks_that_see_their_own_gpu_alone() -> None:
    alone = [dataclasses.replace(one, visible_gpus=1) for one in job()]
    assert judge(alone) == []
    alone[1] = dataclasses.replace(alone[1], gpu="GPU-0")
    [finding] = judge(alone)
    assert "rank 1 on node1: has the same GPU as rank 0 (GPU-0)" in str(finding)


def test_on_one_machine_a_finding_does_not_speak_of_hosts() -> None:
    missing = (Dataset("data.train", "/none", "no such folder or file"),)
    [finding] = judge([Facts("node1", "boot", rank=0, data=missing)])
    assert str(finding) == (
        "node1: data.train: /none: no such folder or file: give the path of the images with "
        "data.train=DIR (docs/how-to/data.md)"
    )


def test_on_one_machine_congestion_control_does_not_matter() -> None:
    here = [dataclasses.replace(one, machine="boot", congestion="bbr") for one in job()]
    assert "congestion" not in [finding.name for finding in judge(here)]


def test_small_files_are_slow_by_the_byte() -> None:
    assert judge(changed(2, reads=Reads(9.0, 8000.0))) == []


def test_a_rank_that_the_launcher_did_not_connect() -> None:
    """srun without MPI or a store: each task is rank 0 of 1."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
    [finding] = judge([Facts("node1", "boot", rank=0, size=1, launcher=launcher_sizes(env))])
    assert "the launcher started 4 ranks (SLURM_STEP_NUM_TASKS), this one sees 1" in str(finding)


@pytest.mark.parametrize(
    ("env", "sizes"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {}),  # a batch script
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, {"SLURM_NTASKS": 4}),
        # mpirun's daemons are a step of one task per host:
        (
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "8"},
            {"OMPI_COMM_WORLD_SIZE": 8},
        ),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, {"WORLD_SIZE": 2}),
        ({"WORLD_SIZE": "2"}, {}),
    ],
)
def test_launcher_sizes(env: dict[str, str], sizes: dict[str, int]) -> None:
    assert launcher_sizes(env) == sizes


def test_faults_first_and_raised_together() -> None:
    ranks = changed(2, clock=1060.0, size=1, data=(Dataset("data.train", "/d", "an empty folder"),))
    findings = judge(ranks)
    assert [finding.name for finding in findings] == ["size", "data", "clock"]
    with pytest.raises(CommError, match=r"this one sees 1.*\n.*an empty folder[^\n]*$") as error:
        raise_faults(findings)
    assert error.value.everywhere
    raise_faults(findings[2:])  # warnings stop nothing


def test_hosts_with_the_same_name_are_shown_with_their_address() -> None:
    ranks = [dataclasses.replace(one, host="localhost") for one in changed(2, config="bad")]
    text = str(judge(ranks)[0])
    assert (
        "c0ffee on localhost (10.0.0.1), localhost (10.0.0.2); bad on localhost (10.0.0.2)" in text
    )


def test_facts_travel_as_json() -> None:
    for one in [*job(), changed(2, faults=("a", "b"))[2]]:
        assert Facts.from_json(one.to_json()) == one


def test_facts_of_another_version_can_be_read() -> None:
    content = json.loads(job()[0].to_json()) | {"altitude": 3}
    del content["congestion"], content["faults"]
    assert Facts.from_json(json.dumps(content)) == job()[0]


def test_every_finding_is_in_the_docs() -> None:
    page = DOCS.read_text()
    for name in {case[0] for case in CASES} | {"ssh", "python", "folder"}:
        assert f"| {name} |" in page, name
