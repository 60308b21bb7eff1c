"""Choose the network interface through which ranks talk, and set it for all libraries.

The user can name it or its subnet. Otherwise the kernel's route to the other hosts decides: names
of interfaces differ between hosts, and the bridges of containers reach no other host. IPv4 only,
as in Gloo.
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
from hvdtrain.launch.variables import by_torchrun, on_one_host

CONTAINER_BRIDGE = re.compile(
    r"docker\d+$|docker_gwbridge$|br-[0-9a-f]{12}$|(virbr|cni|podman|lxcbr|lxdbr|vnet|veth)\w*$"
    r"|(cni|cali|flannel|kube)[\w.-]*$"
)
"""Names that container and virtual machine managers give to networks inside one host."""

LIBRARY_VARIABLES = (
    "HOROVOD_GLOO_IFACE",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "OMPI_MCA_btl_tcp_if_include",
)
"""Variables that set the interface of Horovod, NCCL, torch's Gloo and Open MPI."""

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
    """Enabled, and a cable or another machine is connected."""
    speed_mbit: int
    """0: unknown. Virtual interfaces have no speed, unless they are built on a real one."""

    @property
    def fault(self) -> str | None:
        """Why no other host can be reached through it; None: it looks usable from here."""
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
    """The chosen interface and its address."""

    name: str
    address: str
    prefix: int
    mtu: int
    speed_mbit: int
    """0: unknown."""

    @property
    def subnet(self) -> str:
        """Its network in CIDR form; the text is the same on every host of the network."""
        return str(ipaddress.ip_interface(f"{self.address}/{self.prefix}").network)


def interfaces(sysfs: Path = Path("/sys/class/net")) -> list[Interface]:
    """All interfaces of this host (of this network namespace), sorted by name."""
    addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
    all_interfaces = []
    for name in sorted(states):
        own = [a for a in addresses.get(name, []) if a.family == socket.AF_INET and a.netmask]
        state, folder = states[name], sysfs / name
        real = (folder / "device").exists() or any(folder.glob("lower_*"))
        all_interfaces.append(
            Interface(
                name,
                tuple(str(ipaddress.ip_interface(f"{a.address}/{a.netmask}")) for a in own),
                state.mtu,
                state.isup,
                max(0, state.speed) if real else 0,
            )
        )
    return all_interfaces


def choose(
    interface: str = "auto",
    peers: Sequence[str] = (),
    candidates: Sequence[Interface] | None = None,
) -> Nic:
    """Choose the interface of this host; `candidates` None: all of `interfaces()`.

    `interface` is the config's `comm.interface`: a name, a subnet in CIDR form, or auto. For auto
    the route to `peers` (names or addresses) decides; without peers it is the interface of the
    default route, or the only usable one. Raises CommError, which lists all candidates.
    """
    candidates = interfaces() if candidates is None else candidates
    if interface != "auto":
        return _named(interface, candidates)
    for peer in peers or (ELSEWHERE,):
        source = route_source(peer)
        if source is not None and (nic := _having(source, candidates)) is not None:
            return nic
    usable = [nic for nic in candidates if nic.fault is None]
    if not peers and len(usable) == 1:
        return _nic(usable[0], usable[0].addresses[0])
    problem = (
        f"no network interface has a usable route to {', '.join(peers)}"
        if peers
        else "cannot choose between the network interfaces"
    )
    raise CommError(
        f"{socket.gethostname()}: {problem}: found {_list(candidates)}; "
        "name the network with comm.interface=10.0.0.0/24"
    )


def choose_for_rank(interface: str, env: Mapping[str, str]) -> Nic | None:
    """The interface for a rank that a launcher started; None if all ranks are on one host.

    For auto, an interface that the user set for a library comes first, if this host has it. Not
    under horovodrun: it sets the name of one host's interface on all hosts, so there the route to
    its store decides.
    """
    if interface == "auto" and on_one_host(env):
        return None
    candidates = interfaces()
    if interface == "auto" and "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in env:
        for name in LIBRARY_VARIABLES:
            names = [text.removeprefix("=") for text in env.get(name, "").split(",") if text]
            for nic in candidates:
                if nic.fault is None and (address := _match(names, nic)) is not None:
                    return _nic(nic, address)
    return choose(interface, peers_of(env), candidates)


def library_variables(nic: Nic) -> dict[str, str]:
    """The environment that makes Horovod, NCCL, torch's Gloo and Open MPI use `nic`.

    Open MPI gets the subnet, because its variable may be forwarded to hosts where names differ.
    `oob_tcp_if_include` is not here: it only works as an option of mpirun.
    """
    return {
        "HOROVOD_GLOO_IFACE": nic.name,
        "NCCL_SOCKET_IFNAME": f"={nic.name}",  # without = NCCL takes it as a prefix
        "GLOO_SOCKET_IFNAME": nic.name,
        "OMPI_MCA_btl_tcp_if_include": nic.subnet,
    }


def peers_of(env: Mapping[str, str]) -> list[str]:
    """Addresses of other hosts of the job, taken from the launcher's variables; it may not list all."""
    peers = env.get("HVDTRAIN_PEERS", "").split(",")
    peers.append(env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", ""))
    # "1234.0;tcp://10.0.0.1,172.17.0.1:40123": all addresses of the host that mpirun runs on.
    if match := re.search(r"tcp://([\d.,]+)", env.get("OMPI_MCA_orte_hnp_uri", "")):
        peers += match[1].split(",")
    peers.append(env.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    if by_torchrun(env):
        peers.append(env["MASTER_ADDR"])
    return [peer for peer in peers if peer and not peer.startswith("127.")]


def route_source(peer: str) -> str | None:
    """This host's address from which the kernel would reach `peer`; None without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # sends nothing, because it is a datagram socket
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _named(interface: str, candidates: Iterable[Interface]) -> Nic:
    for nic in candidates:
        address = _match([interface], nic)
        # What reaches no other host is used only if the user means it.
        meant = nic.fault is None or nic.name == interface or _is_loopback(interface)
        if address is not None and nic.up and meant:
            return _nic(nic, address)
    raise CommError(
        f"{socket.gethostname()}: comm.interface: no usable interface is {interface}: "
        f"found {_list(candidates)}"
    )


def _is_loopback(subnet: str) -> bool:
    try:
        return ipaddress.ip_network(subnet, strict=False).is_loopback
    except ValueError:
        return False


def _match(names: Iterable[str], nic: Interface) -> str | None:
    """The address of `nic` that one of `names` (names or subnets) means; None: no match."""
    for text in names:
        if text == nic.name and nic.addresses:
            return nic.addresses[0]
        with contextlib.suppress(ValueError):  # not a subnet
            network = ipaddress.ip_network(text, strict=False)
            for address in nic.addresses:
                if ipaddress.ip_interface(address).ip in network:
                    return address
    return None


def _having(source: str, candidates: Iterable[Interface]) -> Nic | None:
    """The usable interface with the address `source`."""
    for nic in candidates:
        for address in nic.addresses:
            if nic.fault is None and address.split("/")[0] == source:
                return _nic(nic, address)
    return None


def _nic(interface: Interface, address: str) -> Nic:
    ip, _, prefix = address.partition("/")
    return Nic(interface.name, ip, int(prefix), interface.mtu, interface.speed_mbit)


def _list(candidates: Iterable[Interface]) -> str:
    return "; ".join(str(nic) for nic in candidates if nic.name != "lo") or "only loopback"


def use_interface(interface: str = "auto") -> Nic | None:
    """Choose this rank's interface and set it for all libraries in this process's environment."""
    nic = choose_for_rank(interface, os.environ)
    if nic is not None:
        os.environ.update(library_variables(nic))
    return nic
