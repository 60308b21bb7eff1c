"""Who runs where: the one place that decides it, for every launcher, and tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.errors import ConfigError
from hvdtrain.launch.hosts import Host


@dataclass(frozen=True)
class Slot:
    """Place of one rank, in Horovod's words."""

    hostname: str
    rank: int
    local_rank: int
    """Among the ranks of its host; also the index of its GPU, of all that the host has."""
    local_size: int
    cross_rank: int
    """Among the ranks with the same `local_rank`: which host, of those that have so many."""
    cross_size: int
    size: int


@dataclass(frozen=True)
class Placement:
    """All ranks of a job, hosts in the order in which they were given."""

    hosts: tuple[Host, ...]
    slots: tuple[Slot, ...]
    cores: tuple[int | None, ...]
    """Cores of each rank, by host; None: not known from here."""
    gpus: tuple[int | None, ...]
    """GPUs of each host; None: not known from here."""

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
    """Ranks host by host, cores of a host shared out evenly, the GPU by local rank.

    `cores` and `gpus` are those of each host, as far as known. Raises ConfigError where a host
    has GPUs, but fewer than ranks.
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
    """What a rank found of its place."""

    host: str
    cores: int
    gpus: int
    """All that it sees."""


def actual_placement(ranks: Sequence[RankPlace]) -> Placement:
    """The placement as it came to be, from what every rank found, in rank order."""
    by_host: dict[str, list[RankPlace]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host, []).append(rank)
    hosts = [Host(name, len(here)) for name, here in by_host.items()]
    cores = [sum(rank.cores for rank in here) for here in by_host.values()]
    return place(hosts, cores, [here[0].gpus for here in by_host.values()])


def placement_text(placement: Placement) -> str:
    """One line for equal hosts, else one for each kind: `8 ranks on 2 hosts (a, b): …`."""
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
