"""Variables that Horovod and Open MPI get before they start."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from hvdtrain.comm import start
from hvdtrain.comm.horovod import CPU_DEFAULTS, NETWORK_DEFAULTS, settings
from hvdtrain.errors import ConfigError
from hvdtrain.launch.links import LINK_GBIT, SLOW_LINK_SETTINGS

TWO_HOSTS = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
ONE_HOST = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}


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


@pytest.mark.parametrize(
    ("env", "link_gbit", "ring"),
    [
        (TWO_HOSTS, None, False),  # nothing is known of the link
        (TWO_HOSTS, 1.0, True),
        (TWO_HOSTS, 5.0, True),
        (TWO_HOSTS, 10.0, False),
        (TWO_HOSTS | {LINK_GBIT: "1"}, None, True),
        (TWO_HOSTS | {LINK_GBIT: "25"}, None, False),
        (TWO_HOSTS | {LINK_GBIT: "25"}, 1.0, True),  # the config knows better than the card
        (TWO_HOSTS | {LINK_GBIT: "1"}, 25.0, False),
        (ONE_HOST | {LINK_GBIT: "1"}, 1.0, False),
    ],
)
def test_sums_go_round_in_a_ring_where_links_are_known_to_be_slow(
    env: dict[str, str], link_gbit: float | None, ring: bool
) -> None:
    found = settings(env, cpu=True, link_gbit=link_gbit)
    assert set(SLOW_LINK_SETTINGS) & set(found) == (set(SLOW_LINK_SETTINGS) if ring else set())


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "nan", "inf"])
def test_a_speed_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{LINK_GBIT}: expected the speed of a link in Gbit/s"):
        settings(TWO_HOSTS | {LINK_GBIT: text}, cpu=True)


def test_variables_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict.fromkeys((*NETWORK_DEFAULTS, *SLOW_LINK_SETTINGS), "0")
    for name, value in (TWO_HOSTS | own).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start, "Horovod", lambda _why: SimpleNamespace(size=4))
    monkeypatch.setattr(start, "use_interface", lambda _: None)
    monkeypatch.setattr(start, "require_launcher", lambda _: None)
    monkeypatch.setattr(start, "report_joined", lambda _: None)
    for name in set(settings(os.environ, cpu=True)) - set(own):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # undone after the test
    start.init_comm(link_gbit=1.0)
    assert {name: os.environ[name] for name in own} == own
