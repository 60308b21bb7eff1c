"""What one rank, or one host, can tell of itself before a run; `judge` compares it with the others.

`python -m hvdtrain.preflight.facts REQUEST` prints a host's facts as JSON: so `hvdtrain doctor --hosts`
asks over ssh. No torch, no Horovod.
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
from pathlib import Path
from typing import Any

import hvdtrain
from hvdtrain.config.load import config_hash, load_config
from hvdtrain.errors import HvdtrainError
from hvdtrain.launch.nic import Nic, choose
from hvdtrain.preflight.storage import Dataset, Disk, Reads, datasets, disk_at, look
from hvdtrain.versions import installed_versions


@dataclass(frozen=True)
class Link:
    """From this rank to the next one of the ring, which is on another host."""

    to: int
    address: str
    mbit: float = 0.0
    latency_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Facts:
    """Of one rank; of one host where `rank` is None. What is not known is None or empty."""

    host: str
    machine: str
    """Equal on ranks that share a kernel and its network."""
    rank: int | None = None
    size: int = 1
    local_rank: int = 0
    launcher: dict[str, int] = field(default_factory=dict)
    """How many ranks its launcher started, by variable."""
    versions: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    """Hash of the resolved config."""
    clock: float = 0.0
    """Seconds since 1970, ahead of the others' by the difference: all ranks look at one moment."""
    disk: Disk | None = None
    data: tuple[Dataset, ...] = ()
    nic: Nic | None = None
    link_gbit: float | None = None
    """The config's `comm.link_gbit`."""
    link: Link | None = None
    congestion: str = ""
    """The host's congestion control of TCP."""
    visible_gpus: int = 0
    gpu: str | None = None
    """Identity of the GPU of this rank."""
    gpu_name: str = ""
    reads: Reads | None = None
    faults: tuple[str, ...] = ()
    """Found wrong without the others' facts."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Facts:
        """The facts that `to_json` wrote, also those of another version of it: versions are among
        what is compared."""
        known = {each.name for each in dataclasses.fields(Facts)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        for name, kind in (("disk", Disk), ("nic", Nic), ("link", Link), ("reads", Reads)):
            if values.get(name) is not None:
                values[name] = kind(**values[name])
        values["data"] = tuple(Dataset(**one) for one in values.get("data", ()))
        values["faults"] = tuple(values.get("faults", ()))
        return Facts(**values)


def machine_id() -> str:
    """Boot and network namespace: what ranks of one host share, also where host names repeat.

    In a task of Slurm its node, too: a machine may be several.
    """
    node = os.environ.get("SLURMD_NODENAME", "") if "SLURM_STEP_ID" in os.environ else ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    network = Path("/proc/self/ns/net")
    try:
        return f"{boot.read_text().strip()} {network.stat().st_ino} {node}"
    except OSError:
        return f"{socket.gethostname()} {node}"


def congestion_control() -> str:
    """What TCP uses on this host; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Installed packages, and a hash of hvdtrain's own code: checkouts differ without a version."""
    digest = hashlib.sha256()
    root = Path(hvdtrain.__file__).parent.parent
    for folder in ("hvdtrain", "pipelines"):
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    found = installed_versions()
    found["hvdtrain"] += f" (code {digest.hexdigest()[:8]})"
    return found


def of_host(request: Mapping[str, Any]) -> Facts:
    """What `hvdtrain doctor --hosts` wants to know of a host.

    `request`: `config` (a path or None), `overrides`, `interface`, `peers` (names of the other
    hosts), `first` (True on the host that writes the run directory), `listing` (of the datasets).
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
                data = tuple(look(key, path) for key, path in datasets(cfg))
            if request["first"]:
                disk = disk_at(Path(cfg.output), keep=cfg.checkpoint.keep)
        if unknown := [peer for peer in peers if not _is_known(peer)]:
            faults.append(f"the name {unknown[0]} is unknown there: add it to DNS or /etc/hosts")
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
