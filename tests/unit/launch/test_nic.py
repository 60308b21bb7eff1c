"""The choice of a network interface on hosts with several, as in real clusters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hvdtrain.config.load import parse_config
from hvdtrain.errors import CommError, ConfigError
from hvdtrain.launch import nic
from hvdtrain.launch.nic import Interface, Nic, choose, choose_for_rank, library_variables, peers_of

LO = Interface("lo", ("127.0.0.1/8",), 65536, True, 0)
DOCKER = Interface("docker0", ("172.17.0.1/16",), 1500, True, 0)
FAST = Interface("ens5f0", ("10.0.0.1/24",), 9000, True, 25000)
SLOW = Interface("eno1", ("192.168.1.7/24",), 1500, True, 1000)
DEAD = Interface("ens5f1", ("10.0.1.1/24",), 9000, False, 0)
BARE = Interface("ens6", (), 1500, True, 0)
HOST = [DOCKER, SLOW, FAST, DEAD, BARE, LO]


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The kernel's routes: address of the peer → address of this host."""
    table = {"10.0.0.2": "10.0.0.1", "172.17.0.1": "172.17.0.1", nic.ELSEWHERE: "192.168.1.7"}
    monkeypatch.setattr(nic, "route_source", table.get)
    return table


@pytest.mark.parametrize(
    ("interface", "peers", "name"),
    [
        ("auto", ["10.0.0.2"], "ens5f0"),
        ("auto", ["172.17.0.1", "10.0.0.2"], "ens5f0"),  # every host has a docker0 of this address
        ("auto", [], "eno1"),  # the default route
        ("eno1", ["10.0.0.2"], "eno1"),
        ("10.0.0.0/8", [], "ens5f0"),
        ("192.168.1.7/32", [], "eno1"),
        ("docker0", [], "docker0"),  # asked for by name
        ("127.0.0.0/8", [], "lo"),
    ],
)
def test_chosen(interface: str, peers: list[str], name: str) -> None:
    assert choose(interface, peers, HOST).name == name


def test_the_only_interface_without_any_route(routes: dict[str, str]) -> None:
    routes.clear()
    assert choose("auto", [], [DOCKER, FAST, DEAD, LO]) == Nic(
        "ens5f0", "10.0.0.1", 24, 9000, 25000
    )
    with pytest.raises(
        CommError, match="cannot choose between the network interfaces: found docker0"
    ):
        choose("auto", [], HOST)


@pytest.mark.parametrize(
    ("interface", "peers", "message"),
    [
        ("ens5f1", [], r"no usable interface is ens5f1: .*ens5f1 10.0.1.1/24 mtu 9000 \(link down"),
        ("172.16.0.0/12", [], r"docker0 172.17.0.1/16 mtu 1500 \(a network of containers inside"),
        ("ens6", [], r"ens6 mtu 1500 \(no IPv4 address\)"),
        (
            "auto",
            ["10.9.9.9"],
            "no network interface has a usable route to 10.9.9.9: found docker0",
        ),
    ],
)
def test_errors_list_the_candidates(interface: str, peers: list[str], message: str) -> None:
    with pytest.raises(CommError, match=message):
        choose(interface, peers, HOST)


def test_all_libraries_get_the_same_interface() -> None:
    assert library_variables(choose("ens5f0", [], HOST)) == {
        "HOROVOD_GLOO_IFACE": "ens5f0",
        "NCCL_SOCKET_IFNAME": "=ens5f0",
        "GLOO_SOCKET_IFNAME": "ens5f0",
        "OMPI_MCA_btl_tcp_if_include": "10.0.0.0/24",
    }


TWO_HOSTS = {"HOROVOD_SIZE": "4", "HOROVOD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
        ({"SLURM_NNODES": "1", "SLURM_PROCID": "0"}, None),
        (TWO_HOSTS | {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.2"}, "ens5f0"),
        # Set by a launcher, which took it from another host or from the first of several names:
        (TWO_HOSTS | {"HOROVOD_GLOO_IFACE": "eth0", "HVDTRAIN_PEERS": "10.0.0.2"}, "ens5f0"),
        (
            TWO_HOSTS | {"HOROVOD_GLOO_IFACE": "eno1", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.2"},
            "ens5f0",
        ),
        (TWO_HOSTS | {"HOROVOD_GLOO_IFACE": "docker0", "HVDTRAIN_PEERS": "10.0.0.2"}, "ens5f0"),
        # Set by the user:
        (TWO_HOSTS | {"NCCL_SOCKET_IFNAME": "=eno1", "HVDTRAIN_PEERS": "10.0.0.2"}, "eno1"),
        (TWO_HOSTS | {"OMPI_MCA_btl_tcp_if_include": "10.0.0.0/24"}, "ens5f0"),
    ],
)
def test_of_a_rank(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], name: str | None) -> None:
    monkeypatch.setattr(nic, "interfaces", lambda: HOST)
    chosen = choose_for_rank("auto", env)
    assert (chosen and chosen.name) == name


def test_peers_by_launcher() -> None:
    uri = "1097793536.0;tcp://192.0.2.2,172.17.0.1:34153;tcp6://[fd00::2]:34265"
    assert peers_of({"OMPI_MCA_orte_hnp_uri": uri}) == ["192.0.2.2", "172.17.0.1"]
    assert peers_of({"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1"}) == []
    assert peers_of({"HVDTRAIN_PEERS": "a,b", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9"}) == [
        "a",
        "b",
        "10.0.0.9",
    ]


def test_this_host() -> None:
    names = {interface.name: interface for interface in nic.interfaces()}
    assert names["lo"].fault == "loopback"
    assert names["lo"].addresses[0] == "127.0.0.1/8"


def test_no_torch_no_horovod() -> None:
    """Importing them takes seconds, and launchers need a quick answer."""
    code = "import sys, hvdtrain.launch.nic; print({'torch', 'horovod'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("value", ["10.0.0.0/99", "two words", "''"])
def test_config_field(value: str) -> None:
    with pytest.raises(ConfigError, match=r"comm\.interface: expected"):
        parse_config(f"phases: [{{epochs: 1}}]\ncomm: {{interface: {value}}}")


def test_config_field_values() -> None:
    for value in ("auto", "ens5f0", "bond0.100", "10.0.0.0/24"):
        text = f"phases: [{{epochs: 1}}]\ncomm: {{interface: {value}}}"
        assert parse_config(text).comm.interface == value
