"""A training step on a cluster: gradients are sent during the backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.scaling.ends import Ends, same
from hvdtrain.scaling.network import Cost

SIGMA = Ends(fast=0.005, slow=0.04)
"""Standard deviation of a rank's step time divided by its mean. If late ranks are all that is lost, eight GPUs of
one machine with enough images give 0.8 to 1.7 % (NVIDIA, 96.6 to 98.4 %), and Horovod's 88 to 90 % on 128 and 512
GPUs 2.5 to 4.2 %."""


def sigmas(given: float | None) -> Ends[float]:
    """Both ends; one number if it is `given`."""
    return SIGMA if given is None else same(given)


@dataclass(frozen=True)
class Group:
    """Gradients that become ready together."""

    size_bytes: float
    """On the wire."""
    release_s: float
    """When they are ready, from the start of the step."""
    matrices: tuple[tuple[int, int], ...] | None = None
    """Rows and columns of each tensor of two dimensions or more; None: not known."""


def last_arrival(groups: Sequence[Group], cost: Cost, fusion_bytes: float = 0.0) -> float:
    """When the last sum arrives, in seconds from the start of the step.

    `groups`: in order of release. There is one message at a time: when the network is free, the
    groups that are ready are sent together, in order, up to `fusion_bytes` (at least one group).
    Source: Sergeev and Del Balso 2018, https://arxiv.org/abs/1802.05799, section 5 (tensor fusion).
    """
    free, sent = 0.0, 0
    while sent < len(groups):
        free = max(free, groups[sent].release_s)
        size = groups[sent].size_bytes
        sent += 1
        while (
            sent < len(groups)
            and groups[sent].release_s <= free
            and size + groups[sent].size_bytes <= fusion_bytes
        ):
            size += groups[sent].size_bytes
            sent += 1
        free += cost(size)
    return free


def straggler(ranks: int, sigma: float) -> float:
    """The longest of `ranks` steps over their mean: 1 + σ √(2 ln N).

    An upper bound of the expected maximum of N normal numbers, tight for large N.
    Source: Boucheron, Lugosi and Massart 2013, "Concentration Inequalities", theorem 2.5.
    """
    return 1 + sigma * math.sqrt(2 * math.log(ranks))


@dataclass(frozen=True)
class Step:
    """The time of one update on a cluster, in seconds."""

    compute_s: float
    """On one rank without communication."""
    exposed_s: float
    """From the end of the backward pass until the last sum arrives."""
    late_s: float
    """Waiting for the slowest rank."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute_s + self.exposed_s + self.late_s

    @property
    def efficiency(self) -> float:
        """Images/s divided by that of the same number of ranks without communication, 0-1."""
        return self.compute_s / self.seconds


def make_step(
    groups: Sequence[Group],
    cost: Cost,
    *,
    compute_s: float,
    backward_end_s: float,
    ranks: int,
    sigma: float,
    fusion_bytes: float = 0.0,
) -> Step:
    """One update of `ranks` ranks whose backward pass ends `backward_end_s` into the step.

    The slowest rank is late by (j - 1) of a step, j = `straggler`, and the exposed time follows:
    compute · j + exposed.
    """
    last = last_arrival(groups, cost, fusion_bytes)
    exposed = max(0.0, last - backward_end_s)
    return Step(compute_s, exposed, compute_s * (straggler(ranks, sigma) - 1))
