"""The cost of one allreduce on a cluster: from link speed, latency, and the ranks of a host."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from hvdtrain.scaling.ends import End

Algorithm = Literal["flat", "hierarchical", "halving"]
Cost = Callable[[float], float]
"""Bytes of one message → seconds of its allreduce."""


@dataclass(frozen=True)
class Network:
    """The links of a cluster, the same on every host."""

    link_gbit: float
    """Speed of one host's link in each direction, Gbit/s."""
    efficiency: float
    """Share of the link that carries gradients, 0-1, at the fast end of a prediction. The rest is headers of
    frames and protocols, what network stack and library leave unused, and copies to and from the GPU that are
    not hidden."""
    latency_s: float
    """Of an empty message from one host's buffer to another host's: α."""
    most_gbit: float = math.inf
    """Most gradients that a host can send, however fast its link, Gbit/s."""
    local_bytes_per_s: float = 10e9
    """Between two ranks of one host; 10e9 is about what PCIe 3.0 ×16 reaches."""
    local_latency_s: float = 5e-6
    """Between two ranks of one host."""
    call_s: float = 1e-3
    """Of each allreduce of any size: until all ranks are known to be ready (Horovod's cycle)."""
    least_efficiency: float | None = None
    """`efficiency` at the slow end; None: the same."""

    def at(self, end: End) -> Network:
        """With one figure for the share of the link."""
        share = self.efficiency if end == "fast" else (self.least_efficiency or self.efficiency)
        return replace(self, efficiency=share, least_efficiency=None)

    @property
    def bytes_per_s(self) -> float:
        """Speed of gradients on one host's link, in each direction."""
        return min(self.link_gbit * self.efficiency, self.most_gbit) * 1e9 / 8


@dataclass(frozen=True)
class Cluster:
    """Hosts with the same number of ranks, and how they sum gradients."""

    hosts: int
    ranks_per_host: int
    network: Network
    algorithm: Algorithm = "flat"

    @property
    def ranks(self) -> int:
        """World size."""
        return self.hosts * self.ranks_per_host

    def at(self, end: End) -> Cluster:
        """At one end of what its network is assumed to reach."""
        return replace(self, network=self.network.at(end))

    def allreduce_s(self, size_bytes: float) -> float:
        """Seconds of one allreduce of `size_bytes` per rank."""
        if self.ranks == 1:
            return 0.0
        seconds = {"flat": _flat, "hierarchical": _hierarchical, "halving": _halving}
        return self.network.call_s + seconds[self.algorithm](self, size_bytes)

    def host_bytes(self, size_bytes: float) -> float:
        """Bytes that one host's link sends (and receives) in one allreduce, without headers."""
        if self.hosts == 1:
            return 0.0
        n = self.ranks if self.algorithm == "flat" else self.hosts
        return 2 * (n - 1) / n * size_bytes


def _flat(cluster: Cluster, size_bytes: float) -> float:
    """A ring over all N ranks, those of a host next to each other: n of its N hops leave a host.

    Each rank sends 2 (N - 1) pieces of S / N bytes, one after the other, and each of them must
    arrive first. So a piece takes as long as the bytes of the slowest hop, or as the mean over the
    ring of bytes and latency (S / N / B + α), whichever is longer. With one rank per host:
    2 (N - 1) / N · S / B + 2 (N - 1) · α.
    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009, section 4 (the
    ring); Baccelli et al. 1992, "Synchronization and Linearity", section 3.2 (the pace of such a
    chain is its largest cycle mean).
    """
    net, ranks, hosts = cluster.network, cluster.ranks, cluster.hosts
    piece = size_bytes / ranks
    wire_s, local_s = piece / net.bytes_per_s, piece / net.local_bytes_per_s
    wire_hops = hosts if hosts > 1 else 0
    local_hops = ranks - wire_hops
    slowest = max(wire_s if wire_hops else 0.0, local_s if local_hops else 0.0)
    around = wire_hops * (wire_s + net.latency_s) + local_hops * (local_s + net.local_latency_s)
    return 2 * (ranks - 1) * max(slowest, around / ranks)


def _local_phases(cluster: Cluster, size_bytes: float) -> float:
    """Reduce-scatter and allgather among the g ranks of a host: together they cost a ring."""
    net, g = cluster.network, cluster.ranks_per_host
    return 2 * (g - 1) * (size_bytes / g / net.local_bytes_per_s + net.local_latency_s)


def _hierarchical(cluster: Cluster, size_bytes: float) -> float:
    """Sum within each host, a ring over the n hosts, and distribute within each host.

    Each of the g ranks of a host sends 1/g of the bytes between hosts, all at the same time.
    Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 4 (three phases); Horovod's
    HOROVOD_HIERARCHICAL_ALLREDUCE has the same phases.
    """
    net, n = cluster.network, cluster.hosts
    wire = 2 * (n - 1) * (size_bytes / n / net.bytes_per_s + net.latency_s)
    return wire + _local_phases(cluster, size_bytes)


def _halving(cluster: Cluster, size_bytes: float) -> float:
    """Hosts exchange halves, quarters, ... and back: 2 ⌈log2 n⌉ latencies. Meanwhile the ranks of a
    host do their two phases (pipelined), so the slower of the two counts.

    Source: Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication
    operations in MPICH", section 4.5 (reduce-scatter by halving, allgather by doubling); pipelined:
    Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 4.
    """
    net, n = cluster.network, cluster.hosts
    wire = 2 * (n - 1) / n * size_bytes / net.bytes_per_s
    rounds = 2 * math.ceil(math.log2(n)) * net.latency_s
    return max(wire + rounds, _local_phases(cluster, size_bytes))


NETWORKS = {
    "tcp": Network(
        link_gbit=0.0, efficiency=0.7, least_efficiency=0.35, latency_s=50e-6, most_gbit=30.0
    ),
    "rdma": Network(link_gbit=0.0, efficiency=0.85, latency_s=5e-6),
}
"""One set of figures per type of network, for any speed; docs/explanation/scaling.md has their sources."""
