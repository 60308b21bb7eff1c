"""The least time of a ring allreduce on a link, and the highest efficiency it allows."""

from __future__ import annotations


def ring_seconds(size_bytes: float, ranks: int, bytes_per_s: float) -> float:
    """Seconds of an allreduce of `size_bytes` over a flat ring of `ranks` on several machines.

    Each machine's link carries 2 (N - 1) / N of the bytes in each direction, for any number of
    ranks per machine. Latency is not included, so this is a lower bound.
    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009, theorem 1.
    """
    return 2 * (ranks - 1) / ranks * size_bytes / bytes_per_s


def efficiency_ceiling(compute_s: float, backward_s: float, network_s: float) -> float:
    """Highest possible efficiency (0-1): the whole backward pass hides communication.

    `compute_s`: an update of one rank without communication, of which `backward_s` is its last
    backward pass. `network_s`: from `ring_seconds`.
    """
    return compute_s / (compute_s - backward_s + max(backward_s, network_s))
