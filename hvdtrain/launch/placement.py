"""Decide which rank runs on which host, with which cores and GPU, for every launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.errors import ConfigError
from hvdtrain.launch.hosts import Host


@dataclass(frozen=True)
class Slot:
    """Place of one rank, in Horovod's terms."""

    hostname: str
    rank: int
    local_rank: int
    """Number among the ranks of its host, from 0; also the index of its GPU on the host."""
    local_size: int
    cross_rank: int
    """Number of its host, from 0, among the hosts that have a rank with this `local_rank`."""
    cross_size: int
    """Number of hosts that have a rank with this `local_rank`."""
    size: int


@dataclass(frozen=True)
class Placement:
    """All ranks of a job; hosts are in the order in which the user gave them."""

    hosts: tuple[Host, ...]
    slots: tuple[Slot, ...]
    cores: tuple[int | None, ...]
    """Cores of each rank, for each host; None: not known on this host."""
    gpus: tuple[int | None, ...]
    """GPUs of each host; None: not known on this host."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.slots)

    def slot(self, node: int, local_rank: int) -> Slot:
        """The rank with that `local_rank` on host number `node`."""
        return self.slots[sum(host.slots for host in self.hosts[:node]) + local_rank]


def place(
    hosts: Sequence[Host],
    cores: Sequence[int | None] | None = None,
    gpus: Sequence[int | None] | None = None,
) -> Placement:
    """Place ranks host by host; the ranks of a host share its cores evenly and have a GPU each.

    `cores` and `gpus`: of each host, None where unknown. Raises ConfigError if a host has GPUs, but
    fewer than ranks.
    """
    none = [None] * len(hosts)
    cores, gpus = cores or none, gpus or none
    size = sum(host.slots for host in hosts)
    slots: list[Slot] = []
    for node, host in enumerate(hosts):
        count = gpus[node]
        if count and count < host.slots:
            raise ConfigError(
                f"{host.name}: {host.slots} ranks, but {count} GPUs: start one rank per GPU"
            )
        for local_rank in range(host.slots):
            peers = [n for n, other in enumerate(hosts) if other.slots > local_rank]
            place = peers.index(node), len(peers)
            slots.append(Slot(host.name, len(slots), local_rank, host.slots, *place, size))
    each = [
        None if count is None else max(1, count // host.slots)
        for host, count in zip(hosts, cores, strict=True)
    ]
    return Placement(tuple(hosts), tuple(slots), tuple(each), tuple(gpus))


@dataclass(frozen=True)
class RankPlace:
    """Where a rank runs, as it sees it itself."""

    host: str
    cores: int
    """Cores that the rank may use."""
    gpus: int
    """All GPUs that the rank sees."""


def actual_placement(ranks: Sequence[RankPlace]) -> Placement:
    """The placement that the launcher really made; `ranks` are in rank order."""
    by_host: dict[str, list[RankPlace]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host, []).append(rank)
    hosts = [Host(name, len(here)) for name, here in by_host.items()]
    cores = [sum(rank.cores for rank in here) for here in by_host.values()]
    return place(hosts, cores, [here[0].gpus for here in by_host.values()])


def placement_text(placement: Placement) -> str:
    """One line, with hosts of the same kind together: `8 ranks on 2 hosts (a, b): 4 ranks each`."""
    kinds: dict[tuple[int, int | None, int | None], list[str]] = {}
    rows = zip(placement.hosts, placement.cores, placement.gpus, strict=True)
    for host, cores, gpus in rows:
        kinds.setdefault((host.slots, cores, gpus), []).append(host.name)
    lines = []
    for (slots, cores, gpus), names in kinds.items():
        shown = ", ".join(names if len(names) <= 4 else [*names[:3], "…", names[-1]])
        parts = [_count(slots, "rank") + " each" if len(names) > 1 else _count(slots, "rank")]
        if cores is not None:
            parts.append(_count(cores, "core") + " a rank")
        if gpus is not None:
            parts.append(f"{_count(gpus, 'GPU')}, by local rank" if gpus else "no GPU")
        lines.append(f"{_count(len(names), 'host')} ({shown}): {', '.join(parts)}")
    return f"{_count(placement.size, 'rank')} on " + "; ".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
