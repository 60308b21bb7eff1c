"""Algorithms of Open MPI's collectives: they must be the same on all ranks, and fit the links."""

from __future__ import annotations

import dataclasses

import pytest

from hvdtrain.errors import CommError
from hvdtrain.launch.links import ALGORITHM, SLOW_LINK_SETTINGS
from hvdtrain.preflight.collectives import collectives_of
from hvdtrain.preflight.facts import Facts, Link
from hvdtrain.preflight.judge import judge
from tests.unit.preflight.test_judge import DOCS


def job(hosts: int, mbit: float = 940.0) -> list[Facts]:
    """One rank of mpirun on each of `hosts` hosts without GPUs, with links of `mbit`."""
    return [
        Facts(
            host=f"node{rank}",
            machine=f"boot{rank}",
            rank=rank,
            size=hosts,
            launcher={"OMPI_COMM_WORLD_SIZE": hosts},
            link=Link((rank + 1) % hosts, "10.0.0.1:40000", mbit, 1e-4),
        )
        for rank in range(hosts)
    ]


def test_a_slow_link_that_nothing_is_set_for_is_a_note() -> None:
    [finding] = judge(job(3))
    assert (finding.name, finding.is_fault) == ("algorithm", False)
    assert "0.94 Gbit/s, and Open MPI's own choice" in str(finding)
    assert "comm.link_gbit" in finding.fix


@pytest.mark.parametrize(
    "facts",
    [
        job(2),
        job(3, mbit=9400.0),
        [dataclasses.replace(one, launcher={"HOROVOD_SIZE": 3}) for one in job(3)],
        [dataclasses.replace(one, visible_gpus=1) for one in job(3)],
        [dataclasses.replace(one, collectives={ALGORITHM: "6"}) for one in job(3)],
    ],
    ids=["two hosts", "fast", "gloo", "GPUs", "the user's own"],
)
def test_no_note(facts: list[Facts]) -> None:
    assert judge(facts) == []


def test_ranks_with_different_algorithms_are_a_fault() -> None:
    facts = [dataclasses.replace(one, collectives=dict(SLOW_LINK_SETTINGS)) for one in job(3)]
    assert judge(facts) == []
    facts[2] = dataclasses.replace(facts[2], collectives={ALGORITHM: "3"})
    found = judge(facts)
    assert [(each.name, each.error) for each in found] == [("collectives", CommError)] * 2
    assert f"{ALGORITHM}: 4 on node0, node1; 3 on node2: ranks that sum by different" in str(
        found[0]
    )
    assert "1 on node0, node1; unset on node2" in str(found[1])


def test_only_variables_of_collectives_count() -> None:
    env = SLOW_LINK_SETTINGS | {"OMPI_MCA_btl_tcp_eager_limit": "1", "PATH": "/bin"}
    assert collectives_of(env) == SLOW_LINK_SETTINGS


def test_both_are_in_the_docs() -> None:
    page = DOCS.read_text()
    assert "| collectives |" in page
    assert "| algorithm |" in page
