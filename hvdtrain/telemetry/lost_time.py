"""Where the time goes that several ranks lose against a single one: arithmetic on measured steps.

In a synchronous step every rank computes. Then it waits until the last rank has sent its gradients
and the network has summed them. So each step of a rank has three parts:

    step = waiting for images + computing + waiting for gradients

The last rank waits for nobody else, so its wait is the network's time. The longer wait of the
others is for that rank. The lost time is split by comparison with a rank of typical speed:

    data           the typical rank waited for images
    straggling     the last rank was later than the typical one
    communication  the last rank waited for the network
    padding        the ranks trained on places that only fill up the last batch of an epoch
    other          the typical rank computes slower than a single worker (shared cores, memory, power)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAUSES = ("data", "communication", "straggling", "padding", "other")
WORTH_REPORTING = 0.05
"""Lost or gained share of the time below which no cause is named."""
MANY_RANKS = 3
"""Stragglers that are named one by one; more are only counted."""
MANY_RESENT = 0.01
"""Share of TCP segments sent again above which a machine is named."""


@dataclass(frozen=True)
class LostTime:
    """Lost time of several ranks in one interval; in seconds."""

    seconds: float
    """Time of the steps."""
    ideal_s: float
    """Time of the same steps without loss."""
    by_cause: dict[str, float]
    """Lost time of each of CAUSES. `other` is negative if ranks are faster than a single worker."""
    late_s: np.ndarray
    """[ranks]: how much later than the typical rank each rank was, summed over the steps in which it
    was later."""
    late_data: np.ndarray
    """[ranks]: the part of `late_s` spent waiting for images; the rest is computing."""

    @property
    def ratios(self) -> dict[str, float]:
        """Lost share of the time by cause."""
        return {cause: lost / self.seconds for cause, lost in self.by_cause.items()}

    @property
    def cause(self) -> str | None:
        """The cause that costs most; None if too little is lost."""
        if 1 - self.ideal_s / self.seconds < WORTH_REPORTING:
            return None
        return max(self.by_cause, key=lambda cause: self.by_cause[cause])

    @property
    def stragglers(self) -> list[int]:
        """Each rank that is late by more than half of the time lost by straggling; none if ranks
        are late in turn."""
        half = self.by_cause["straggling"] / 2
        return [rank for rank, late in enumerate(self.late_s.tolist()) if late > max(0.0, half)]

    @property
    def straggler(self) -> int | None:
        """The only one of the stragglers; None if there are several or none."""
        ranks = self.stragglers
        return ranks[0] if len(ranks) == 1 else None


def lost_time(
    step_s: np.ndarray,
    data_s: np.ndarray,
    wait_s: np.ndarray,
    ideal_s: float,
    padding_s: float = 0.0,
) -> LostTime:
    """Split the lost time of an interval by cause; all arrays are [ranks, steps], in seconds.

    `ideal_s`: time that a typical rank needs by itself for the images of these steps; `padding_s`:
    its time for the places without an image. The typical rank has the (lower) median speed over
    the interval; of two ranks it is the faster one.
    """
    ready = step_s - wait_s
    typical = _typical(ready)
    # The network's own time is the wait of the last rank. After an evaluation or a checkpoint the
    # ranks begin a step at different times, so only the waits show which rank is the last.
    network = wait_s.min(axis=0)
    last = step_s.mean(axis=0) - network
    seconds = float(step_s.mean(axis=0).sum())
    lost = {
        "data": float(data_s[typical].sum()),
        "communication": float(network.sum()),
        "straggling": float((last - ready[typical]).sum()),
    }
    lost["padding"] = padding_s
    lost["other"] = seconds - ideal_s - sum(lost.values())
    late = np.maximum(wait_s[typical] - wait_s, 0.0)
    late_data = np.clip(data_s - data_s[typical], 0.0, late)
    return LostTime(seconds, ideal_s, lost, late.sum(axis=1), late_data.sum(axis=1))


def _typical(ready: np.ndarray) -> int:
    """The rank of typical speed; `ready` [ranks, steps]: seconds of a step without waiting for others."""
    pace = ready.sum(axis=1)
    return int(np.argsort(pace, kind="stable")[(len(pace) - 1) // 2])


def computing_s(step_s: np.ndarray, data_s: np.ndarray, wait_s: np.ndarray) -> float:
    """Seconds in which the typical rank computed; arrays as in `lost_time`.

    In place of its ideal time where the speed of a single worker is not known: `other` is then 0.
    """
    ready = step_s - wait_s
    typical = _typical(ready)
    return float((ready[typical] - data_s[typical]).sum())


def sentence(lost: LostTime, hosts: list[str], network: str = "") -> str | None:
    """What costs most, as a sentence; None if too little is lost.

    `hosts` [ranks]; `network`: what is known about it, from `network_text`.
    """
    if lost.ideal_s / lost.seconds - 1 > WORTH_REPORTING:
        return (
            "faster than the baseline: something else used the machine while the speed of a single "
            "worker was measured; take one measured on a quiet machine with metrics.calibration"
        )
    cause = lost.cause
    if cause is None:
        return None
    share = f"{1 - lost.ideal_s / lost.seconds:.0%} of the time is lost, {lost.ratios[cause]:.0%} "
    return share + _reason(lost, cause, hosts, network)


def network_text(
    speeds: np.ndarray, resent: np.ndarray, hosts: list[str], ceiling: float | None
) -> str:
    """The machine whose link is slow or loses packets, else what the link allows; empty if nothing
    is known. In a ring all ranks wait for a slow link alike, so the waits do not show it.

    `speeds` in bytes/s (0: not known) and `resent`, the share of segments sent again, are [ranks];
    the first rank of every machine has its values. `ceiling`: efficiency (0-1) that the slowest
    link allows.
    """
    first_ranks = [hosts.index(host) for host in dict.fromkeys(hosts)]
    known = sorted((float(speeds[rank]), rank) for rank in first_ranks if speeds[rank] > 0)
    if known and known[0][0] < known[len(known) // 2][0] / 2:
        slowest, usual = (
            f"{speed * 8 / 1e9:g} Gbit/s" for speed, _ in (known[0], known[len(known) // 2])
        )
        return f"the link of {hosts[known[0][1]]} runs at {slowest}, others at {usual}"
    losing = sorted((float(resent[rank]), rank) for rank in first_ranks)
    share, rank = losing[-1]
    median = losing[(len(losing) - 1) // 2][0]
    if share > MANY_RESENT and (len(first_ranks) == 1 or share > 2 * median):
        return f"{hosts[rank]} sends {share:.1%} of its packets again: check cable, card and switch"
    return f"the link allows an efficiency of {ceiling:.0%}" if ceiling is not None else ""


def _reason(lost: LostTime, cause: str, hosts: list[str], network: str) -> str:
    if cause == "data":
        return "waiting for images on all ranks"
    if cause == "communication":
        return "waiting for the network" + (f"; {network}" if network else "")
    if cause == "other":
        return "because ranks compute slower together than a single worker"
    if cause == "padding":
        return "on padding of the last batch of an epoch: the global batch is large for the dataset"
    return _whom(lost, hosts)


def _whom(lost: LostTime, hosts: list[str]) -> str:
    """The ranks that the others wait for; their machine if they are all the ranks on it."""
    ranks = lost.stragglers
    if not ranks:
        return "because ranks wait for each other in turn"
    on = {hosts[rank] for rank in ranks}
    several = len(ranks) > 1
    if several and len(on) == 1 and len(ranks) == hosts.count(hosts[ranks[0]]) < len(hosts):
        who = f"the ranks on {on.pop()}"
    elif len(ranks) > MANY_RANKS:
        who = f"{len(ranks)} ranks on {len(on)} machines"
    else:
        who = " and ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks)
    data = lost.late_data[ranks].sum() > lost.late_s[ranks].sum() / 2
    what = (
        ("wait for images" if several else "waits for images")
        if data
        else ("compute slowly" if several else "computes slowly")
    )
    return f"waiting for {who}, which {what}"
