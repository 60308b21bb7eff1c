"""The cost of an allreduce equals closed forms, and simulations of each piece that is sent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hvdtrain.scaling.network import NETWORKS, Cluster, Network
from hvdtrain.scaling.overlap import Group, last_arrival, make_step, straggler

NET = Network(
    link_gbit=10.0,
    efficiency=0.8,
    latency_s=40e-6,
    local_bytes_per_s=8e9,
    local_latency_s=4e-6,
    call_s=0.0,
)


def ring_by_pieces(cluster: Cluster, size_bytes: float) -> float:
    """Simulates each piece of each rank: it leaves when it has arrived and the hop is free."""
    net, ranks = cluster.network, cluster.ranks
    piece = size_bytes / ranks
    out = [(r + 1) % cluster.ranks_per_host == 0 and cluster.hosts > 1 for r in range(ranks)]
    busy = [piece / (net.bytes_per_s if o else net.local_bytes_per_s) for o in out]
    flight = [net.latency_s if o else net.local_latency_s for o in out]
    came = np.zeros(ranks)  # when the piece arrived that each rank sends next
    free = np.zeros(ranks)
    for _ in range(2 * (ranks - 1)):
        free = np.maximum(came, free) + busy
        came = np.roll(free + flight, 1)
    return float(came.max())


@pytest.mark.parametrize("size_bytes", [1e3, 1e6, 4e8])
@pytest.mark.parametrize(("hosts", "each"), [(2, 1), (7, 1), (1, 8), (4, 4), (16, 8)])
def test_the_flat_ring_takes_as_long_as_its_pieces(
    hosts: int, each: int, size_bytes: float
) -> None:
    cluster = Cluster(hosts, each, NET)
    found = ring_by_pieces(cluster, size_bytes)
    assert cluster.allreduce_s(size_bytes) == pytest.approx(found, rel=0.06)
    if each == 1 or hosts == 1:
        assert cluster.allreduce_s(size_bytes) == pytest.approx(found, rel=1e-9)


def test_closed_forms() -> None:
    """One rank per host: 2 (N - 1) / N · S / (η B) + 2 (N - 1) · α."""
    size, speed = 102e6, 1e9
    assert NET.bytes_per_s == speed
    assert Cluster(16, 1, NET).allreduce_s(size) == pytest.approx(
        2 * 15 / 16 * size / speed + 2 * 15 * 40e-6
    )
    local = 2 * 7 / 8 * size / 8e9 + 2 * 7 * 4e-6
    ring = 2 * 3 / 4 * size / speed + 2 * 3 * 40e-6
    assert Cluster(4, 8, NET, "hierarchical").allreduce_s(size) == pytest.approx(local + ring)
    halves = 2 * 7 / 8 * size / speed + 2 * 3 * 40e-6
    assert Cluster(8, 8, NET, "halving").allreduce_s(size) == pytest.approx(halves)
    slow_inside = replace(NET, local_bytes_per_s=1e8)
    assert Cluster(8, 8, slow_inside, "halving").allreduce_s(size) == pytest.approx(
        2 * 7 / 8 * size / 1e8 + 2 * 7 * 4e-6
    )
    assert Cluster(1, 1, NET).allreduce_s(size) == 0
    called = replace(NET, call_s=0.5)
    assert Cluster(4, 1, called).allreduce_s(0.0) == pytest.approx(0.5 + 6 * 40e-6)


def test_halving_moves_the_bytes_that_it_costs() -> None:
    """The rounds one by one: half, a quarter, ... there, and the same back."""
    hosts, size = 16, 1e7
    rounds = [size / 2**k for k in range(1, 5)]
    seconds = 2 * sum(sent / NET.bytes_per_s + NET.latency_s for sent in rounds)
    assert Cluster(hosts, 1, NET, "halving").allreduce_s(size) == pytest.approx(seconds)


def test_bytes_of_a_host() -> None:
    assert Cluster(4, 8, NET).host_bytes(32.0) == pytest.approx(2 * 31)
    assert Cluster(4, 8, NET, "hierarchical").host_bytes(32.0) == pytest.approx(2 * 24)
    assert Cluster(1, 8, NET).host_bytes(32.0) == 0


def test_tcp_gets_no_faster_beyond_its_limit() -> None:
    slow, fast = (replace(NETWORKS["tcp"], link_gbit=gbit) for gbit in (100.0, 400.0))
    assert slow.bytes_per_s == fast.bytes_per_s == pytest.approx(30e9 / 8)
    tcp = replace(NETWORKS["tcp"], link_gbit=10.0)
    assert tcp.at("fast").bytes_per_s == tcp.bytes_per_s == pytest.approx(7e9 / 8)
    assert tcp.at("slow").bytes_per_s == pytest.approx(3.5e9 / 8)
    assert tcp.at("slow").at("slow") == tcp.at("slow")
    assert Cluster(2, 1, tcp).at("slow").network == tcp.at("slow")
    rdma = NETWORKS["rdma"]
    assert rdma.at("slow") == rdma.at("fast") == rdma


def by_ticks(groups: list[Group], fusion: float, tick: float) -> float:
    """Simulates the wire tick by tick: a message takes two ticks, and one for each byte."""
    now, waiting, done_at = 0.0, list(groups), 0.0
    while waiting or now < done_at:
        if now >= done_at - tick / 2 and waiting and waiting[0].release_s <= now + tick / 2:
            ready = [g for g in waiting if g.release_s <= now + tick / 2]
            sent, size = 1, ready[0].size_bytes
            while sent < len(ready) and size + ready[sent].size_bytes <= fusion:
                size += ready[sent].size_bytes
                sent += 1
            waiting = waiting[sent:]
            done_at = now + (2 + size) * tick
        now += tick
    return done_at


@pytest.mark.parametrize("fusion", [0.0, 50.0, 1e9])
@pytest.mark.parametrize("seed", range(5))
def test_the_overlap_equals_a_simulation_by_ticks(seed: int, fusion: float) -> None:
    """Times are whole ticks, so both are exact."""
    random, tick = np.random.default_rng(seed), 1e-3
    released = np.sort(random.integers(0, 200, 30)) * tick
    sizes = random.integers(1, 30, 30).astype(float)
    groups = [Group(float(s), float(t)) for s, t in zip(sizes, released, strict=True)]
    expected = by_ticks(groups, fusion, tick)
    found = last_arrival(groups, lambda size: 2 * tick + size * tick, fusion)
    assert found == pytest.approx(expected, abs=tick / 4)


def test_without_fusion_the_last_arrival_has_a_closed_form() -> None:
    """max over i of (release of i + all messages from i on)."""
    random = np.random.default_rng(1)
    released, sizes = np.sort(random.uniform(0, 1, 50)), random.uniform(0, 0.05, 50)
    groups = [Group(*pair) for pair in zip(sizes.tolist(), released.tolist(), strict=True)]
    expected = (released + np.cumsum(sizes[::-1])[::-1]).max()
    assert last_arrival(groups, lambda size: size) == pytest.approx(float(expected))


def test_the_straggler_bounds_the_largest_of_normal_numbers() -> None:
    random = np.random.default_rng(0)
    for ranks, slack in ((8, 0.4), (128, 0.2), (2048, 0.12)):
        longest = (1 + 0.03 * random.standard_normal((4000, ranks))).max(axis=1).mean() - 1
        bound = straggler(ranks, 0.03) - 1
        assert longest < bound < longest * (1 + slack) + 0.01
    assert straggler(1, 0.03) == 1
    assert straggler(100, 0.0) == 1


def test_a_step_is_computation_exposed_communication_and_the_slowest_rank() -> None:
    groups = [Group(4.0, 1.0), Group(2.0, 2.0)]
    step = make_step(
        groups, lambda size: size, compute_s=3.0, backward_end_s=2.5, ranks=8, sigma=0.1
    )
    assert step.exposed_s == pytest.approx(1 + 4 + 2 - 2.5)
    assert step.late_s == pytest.approx(0.3 * math.sqrt(2 * math.log(8)))
    assert step.seconds == pytest.approx(3.0 + 4.5 + step.late_s)
    assert step.efficiency == pytest.approx(3.0 / step.seconds)
    hidden = make_step(groups, lambda _: 0.0, compute_s=3.0, backward_end_s=2.5, ranks=8, sigma=0.0)
    assert hidden.seconds == 3.0
    assert hidden.efficiency == 1.0
