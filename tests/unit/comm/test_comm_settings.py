"""Variables that Horovod and Open MPI get before they start."""

from __future__ import annotations

import pytest

from hvdtrain.comm.horovod import CPU_DEFAULTS, NETWORK_DEFAULTS, settings


@pytest.mark.parametrize(
    ("env", "network"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, False),
        ({"PMI_SIZE": "8", "SLURM_STEP_NUM_NODES": "2"}, True),
        ({"PMI_SIZE": "8", "SLURM_STEP_NUM_NODES": "1"}, False),
        ({"HOROVOD_SIZE": "2"}, False),
    ],
)
def test_the_network_is_set_only_where_there_is_one(env: dict[str, str], network: bool) -> None:
    found = settings(env, cpu=True)
    assert (found.items() >= NETWORK_DEFAULTS.items()) is network
    assert found.items() >= CPU_DEFAULTS.items()
    assert not settings(env, cpu=False).items() >= CPU_DEFAULTS.items()


@pytest.mark.parametrize(
    ("stall_s", "end"), [(0, "0"), (5, "600"), (600, "4800"), (1.8e308, "1000000000")]
)
def test_horovod_leaves_stalls_to_the_watchdog(stall_s: float, end: str) -> None:
    found = settings({}, cpu=True, stall_s=stall_s)
    assert found["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] == end
