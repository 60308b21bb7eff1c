"""Facts about one rank or one host before a run; `judge` compares those of all.

`python -m hvdtrain.preflight.facts REQUEST` prints a host's facts as JSON; `hvdtrain doctor --hosts`
runs it on every host by ssh. Imports neither torch nor Horovod.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hvdtrain
from hvdtrain.config.load import config_hash, load_config
from hvdtrain.errors import HvdtrainError
from hvdtrain.launch.nic import Nic, choose
from hvdtrain.preflight.storage import Dataset, Disk, Reads, datasets, disk_at, list_images
from hvdtrain.versions import installed_versions


@dataclass(frozen=True)
class Link:
    """The measured link from this rank to the next rank of the ring, on another host."""

    to: int
    address: str
    mbit: float = 0.0
    latency_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Facts:
    """Facts about one rank, or about one host if `rank` is None. Unknown facts are None or empty."""

    host: str
    machine: str
    """Identity of the machine, see `machine_id`."""
    rank: int | None = None
    size: int = 1
    local_rank: int = 0
    launcher: dict[str, int] = field(default_factory=dict)
    """Number of ranks that the launcher started, by the launcher's variable."""
    versions: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    """Hash of the resolved config."""
    clock: float = 0.0
    """Time in seconds since 1970; all ranks read their clocks at the same moment."""
    disk: Disk | None = None
    data: tuple[Dataset, ...] = ()
    nic: Nic | None = None
    link_gbit: float | None = None
    """The config's `comm.link_gbit`."""
    link: Link | None = None
    congestion: str = ""
    """TCP congestion control of the host."""
    collectives: dict[str, str] = field(default_factory=dict)
    """Variables that choose the algorithms of Open MPI's collectives."""
    visible_gpus: int = 0
    gpu: str | None = None
    """UUID of this rank's GPU."""
    gpu_name: str = ""
    reads: Reads | None = None
    faults: tuple[str, ...] = ()
    """Faults that were found without comparing with other ranks."""

    def to_json(self) -> str:
        """The facts as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Facts:
        """Read what `to_json` wrote, also in another version of hvdtrain: versions are compared
        later."""
        known = {each.name for each in dataclasses.fields(Facts)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        for name, kind in (("disk", Disk), ("nic", Nic), ("link", Link), ("reads", Reads)):
            if values.get(name) is not None:
                values[name] = kind(**values[name])
        values["data"] = tuple(Dataset(**one) for one in values.get("data", ()))
        values["faults"] = tuple(values.get("faults", ()))
        return Facts(**values)


def machine_id() -> str:
    """Identity that only ranks of one host share, even if host names repeat: boot and network.

    In a Slurm task also the node, because one machine may run several nodes.
    """
    node = os.environ.get("SLURMD_NODENAME", "") if "SLURM_STEP_ID" in os.environ else ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    network = Path("/proc/self/ns/net")
    try:
        return f"{boot.read_text().strip()} {network.stat().st_ino} {node}"
    except OSError:
        return f"{socket.gethostname()} {node}"


def congestion_control() -> str:
    """TCP congestion control of this host; empty if the kernel does not show it."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Versions of installed packages. hvdtrain's has a hash of its code: checkouts may differ."""
    installed = installed_versions()
    installed["hvdtrain"] += f" (code {_code_hash()})"
    return installed


@cache
def _code_hash() -> str:
    """Of the code as it is at the first call, soon after it was imported."""
    digest = hashlib.sha256()
    root = Path(hvdtrain.__file__).parent.parent
    for folder in ("hvdtrain", "pipelines"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def of_host(request: Mapping[str, Any]) -> Facts:
    """Facts about this host for `hvdtrain doctor --hosts`.

    `request`: `config` (a path or None), `overrides`, `interface`, `peers` (names of the other
    hosts), `first` (True on the host that writes the run directory), `listing` (True: list the
    datasets).
    """
    faults: list[str] = []
    data: tuple[Dataset, ...] = ()
    disk, digest, nic, link_gbit = None, None, None, None
    interface, peers = request["interface"], request["peers"]
    try:
        if request["config"] is not None:
            cfg = load_config(request["config"], request["overrides"])
            digest, link_gbit, interface = config_hash(cfg), cfg.comm.link_gbit, cfg.comm.interface
            if request["listing"]:
                data = tuple(list_images(*named, cfg) for named in datasets(cfg))
            if request["first"]:
                disk = disk_at(
                    Path(cfg.output), keep=cfg.checkpoint.keep + cfg.checkpoint.keep_best
                )
        if unknown := [peer for peer in peers if not _is_known(peer)]:
            faults.append(f"cannot resolve the name {unknown[0]}: add it to DNS or /etc/hosts")
        elif peers:
            nic = choose(interface, peers)
    except HvdtrainError as error:
        faults += str(error).removeprefix(f"{socket.gethostname()}: ").split("\n")
    return Facts(
        host=socket.gethostname(),
        machine=machine_id(),
        versions=versions(),
        config=digest,
        disk=disk,
        data=data,
        nic=nic,
        link_gbit=link_gbit,
        congestion=congestion_control(),
        visible_gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        faults=tuple(faults),
        clock=time.time(),
    )


def _is_known(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None, socket.AF_INET)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(of_host(json.loads(sys.argv[1])).to_json())
