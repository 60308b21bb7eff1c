"""Which network interface of this host the ranks talk through; the same is told to all libraries.

By subnet or name where the user says so, else by the kernel's own route to the other hosts: names
differ between hosts, and bridges of containers have addresses that lead nowhere. IPv4, as Gloo's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hvdtrain.errors import CommError
from hvdtrain.launch.variables import on_one_host

CONTAINER_BRIDGE = re.compile(
    r"docker\d+$|docker_gwbridge$|br-[0-9a-f]{12}$|(virbr|cni|podman|lxcbr|lxdbr|vnet|veth)\w*$"
    r"|(cni|cali|flannel|kube)[\w.-]*$"
)
"""Names that container and virtual machine managers give to networks inside one host."""

TOLD = (
    "HOROVOD_GLOO_IFACE",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "OMPI_MCA_btl_tcp_if_include",
)
"""Variables by which each library is told its interface."""

ELSEWHERE = "198.51.100.1"
"""An address that no host has (RFC 5737): the route to it is the default route."""


@dataclass(frozen=True)
class Interface:
    """One network interface of this host."""

    name: str
    addresses: tuple[str, ...]
    """IPv4, each with its prefix length: 10.0.0.1/24."""
    mtu: int
    up: bool
    """Switched on, and with a carrier."""
    speed_mbit: int
    """0: unknown, as of all virtual interfaces that lie over no other."""

    @property
    def fault(self) -> str | None:
        """Why no other host can be reached through it, as far as can be seen here."""
        if self.name == "lo" or any(a.startswith("127.") for a in self.addresses):
            return "loopback"
        if CONTAINER_BRIDGE.match(self.name):
            return "a network of containers inside this host"
        if not self.up:
            return "link down"
        return None if self.addresses else "no IPv4 address"

    def __str__(self) -> str:
        parts = [self.name, *self.addresses, f"mtu {self.mtu}"]
        if self.speed_mbit:
            parts.append(f"{self.speed_mbit} Mbit/s")
        return " ".join(parts) + (f" ({self.fault})" if self.fault else "")


@dataclass(frozen=True)
class Nic:
    """The interface that was chosen, and its address there."""

    name: str
    address: str
    prefix: int
    mtu: int
    speed_mbit: int
    """0: unknown."""

    @property
    def subnet(self) -> str:
        """Its network in CIDR form: the same text on every host of the network."""
        return str(ipaddress.ip_interface(f"{self.address}/{self.prefix}").network)


def interfaces(sysfs: Path = Path("/sys/class/net")) -> list[Interface]:
    """All interfaces of this host (of this network namespace), by name."""
    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    found = []
    for name in sorted(states):
        own = [a for a in addresses.get(name, []) if a.family == socket.AF_INET and a.netmask]
        state, folder = states[name], sysfs / name
        real = (folder / "device").exists() or any(folder.glob("lower_*"))
        found.append(
            Interface(
                name,
                tuple(str(ipaddress.ip_interface(f"{a.address}/{a.netmask}")) for a in own),
                state.mtu,
                state.isup,
                max(0, state.speed) if real else 0,
            )
        )
    return found


def choose(
    interface: str = "auto",
    peers: Sequence[str] = (),
    found: Sequence[Interface] | None = None,
) -> Nic:
    """The interface to use on this host; `found` is what `interfaces()` gives.

    `interface` is the `comm.interface` of the config: a NAME, a subnet in CIDR form, or auto: by
    the route to `peers` (names or addresses), or without any the default route, or the only one.
    Raises CommError that tells all that was found.
    """
    found = interfaces() if found is None else found
    if interface != "auto":
        return _named(interface, found)
    for peer in peers or (ELSEWHERE,):
        source = route_source(peer)
        if source is not None and (nic := _having(source, found)) is not None:
            return nic
    usable = [nic for nic in found if nic.fault is None]
    if not peers and len(usable) == 1:
        return _nic(usable[0], usable[0].addresses[0])
    to = f"a usable route to {', '.join(peers)}" if peers else "one interface to choose"
    raise CommError(
        f"{socket.gethostname()}: no network interface has {to}: found {_all(found)}; "
        "name the network with comm.interface=10.0.0.0/24"
    )


def choose_for_rank(interface: str, env: Mapping[str, str]) -> Nic | None:
    """The interface for a rank that a launcher started; None if the job is on one host alone.

    Where `interface` is auto, what the user told a library comes first, if this host has it.
    horovodrun tells all hosts a name that one of them has: there the route to its store decides.
    """
    if interface == "auto" and on_one_host(env):
        return None
    found = interfaces()
    if interface == "auto" and "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env:
        for name in TOLD:
            told = [text.removeprefix("=") for text in env.get(name, "").split(",") if text]
            for nic in found:
                if nic.fault is None and (address := _match(told, nic)) is not None:
                    return _nic(nic, address)
    return choose(interface, peers_of(env), found)


def tell(nic: Nic) -> dict[str, str]:
    """The environment that makes Horovod, NCCL, torch's Gloo and Open MPI use `nic`.

    Open MPI gets the subnet, for its variable may travel to hosts where names differ; its
    `oob_tcp_if_include` must be given to mpirun itself.
    """
    return {
        "HOROVOD_GLOO_IFACE": nic.name,
        "NCCL_SOCKET_IFNAME": f"={nic.name}",  # without = it is a prefix of names
        "GLOO_SOCKET_IFNAME": nic.name,
        "OMPI_MCA_btl_tcp_if_include": nic.subnet,
    }


def peers_of(env: Mapping[str, str]) -> list[str]:
    """Addresses of other hosts of the job, as far as its launcher tells them to a rank."""
    peers = env.get("HVDTRAIN_PEERS", "").split(",")
    peers.append(env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", ""))
    # "1234.0;tcp://10.0.0.1,172.17.0.1:40123": every address of the host that mpirun runs on.
    if match := re.search(r"tcp://([\d.,]+)", env.get("OMPI_MCA_orte_hnp_uri", "")):
        peers += match[1].split(",")
    peers.append(env.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    return [peer for peer in peers if peer and not peer.startswith("127.")]


def route_source(peer: str) -> str | None:
    """The own address from which the kernel would talk to `peer`; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # of a datagram socket: nothing is sent
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _named(interface: str, found: Iterable[Interface]) -> Nic:
    for nic in found:
        address = _match([interface], nic)
        # A container's bridge is taken where it is asked for by its name.
        if address is not None and nic.up and (nic.fault is None or nic.name == interface):
            return _nic(nic, address)
    raise CommError(
        f"{socket.gethostname()}: comm.interface: no usable interface is {interface}: "
        f"found {_all(found)}"
    )


def _match(wanted: Iterable[str], nic: Interface) -> str | None:
    """The address by which one of `wanted`, names or subnets, means `nic`."""
    for text in wanted:
        if text == nic.name and nic.addresses:
            return nic.addresses[0]
        with contextlib.suppress(ValueError):  # a name
            network = ipaddress.ip_network(text, strict=False)
            for address in nic.addresses:
                if ipaddress.ip_interface(address).ip in network:
                    return address
    return None


def _having(source: str, found: Iterable[Interface]) -> Nic | None:
    for nic in found:
        for address in nic.addresses:
            if nic.fault is None and address.split("/")[0] == source:
                return _nic(nic, address)
    return None


def _nic(interface: Interface, address: str) -> Nic:
    ip, _, prefix = address.partition("/")
    return Nic(interface.name, ip, int(prefix), interface.mtu, interface.speed_mbit)


def _all(found: Iterable[Interface]) -> str:
    return "; ".join(str(nic) for nic in found if nic.name != "lo") or "none but loopback"


def use_interface(interface: str = "auto") -> Nic | None:
    """Choose for this rank, and tell every library through this process's environment."""
    nic = choose_for_rank(interface, os.environ)
    if nic is not None:
        os.environ.update(tell(nic))
    return nic
