"""What a ring allreduce costs on a link, and the efficiency that leaves at best."""

from __future__ import annotations


def ring_seconds(size_bytes: float, ranks: int, bytes_per_s: float) -> float:
    """Seconds of an allreduce of `size_bytes` over a flat ring of `ranks` on several machines.

    Each machine's link carries 2 (N - 1) / N of the bytes once, in each direction, however many
    ranks the machine has. Latency is left out, so it is a lower bound.
    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009, theorem 1.
    """
    return 2 * (ranks - 1) / ranks * size_bytes / bytes_per_s


def efficiency_ceiling(alone_s: float, backward_s: float, network_s: float) -> float:
    """Highest efficiency (0-1) if all of the backward pass hides communication.

    `alone_s`: an update of one rank alone, `backward_s` of it; `network_s`: `ring_seconds`.
    """
    return alone_s / (alone_s - backward_s + max(backward_s, network_s))
