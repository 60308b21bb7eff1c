"""Where the time goes that more ranks lose against one rank alone: arithmetic on measured steps.

In a synchronous step every rank works, then waits until the last one has sent its gradients and
the network has summed them. Three times of each rank and step tell it apart:

    step = images awaited + computing + gradients awaited

The rank that comes last waits for nobody: its wait is the network's. What the others wait longer is
for that rank. Against a rank of typical pace:

    data           the typical rank waited for images
    straggling     the last rank came later than the typical one
    communication  the last rank waited for the network
    other          the typical rank computes slower than alone (cores, memory or power are shared)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAUSES = ("data", "communication", "straggling", "other")
WORTH_TELLING = 0.05
"""Lost or gained share of the time below which nothing is said."""
MANY_RESENT = 0.01
"""Share of TCP segments sent again above which a machine is named."""


@dataclass(frozen=True)
class LostTime:
    """One interval of several ranks; seconds."""

    seconds: float
    """What the steps took."""
    ideal_s: float
    """What they would have taken without loss."""
    by_cause: dict[str, float]
    """CAUSES: their sum is what was lost. `other` is below 0 where ranks were faster than alone."""
    late_s: np.ndarray
    """[ranks]: how much later than the typical rank each came, in the steps it came last."""
    late_data: np.ndarray
    """[ranks]: the part of `late_s` in which it waited for images; the rest it computed."""

    @property
    def ratios(self) -> dict[str, float]:
        """Lost share of the time by cause."""
        return {cause: lost / self.seconds for cause, lost in self.by_cause.items()}

    @property
    def cause(self) -> str | None:
        """The cause that costs most; None where too little is lost to tell."""
        if 1 - self.ideal_s / self.seconds < WORTH_TELLING:
            return None
        return max(self.by_cause, key=lambda cause: self.by_cause[cause])

    @property
    def straggler(self) -> int | None:
        """The rank that is late for over half of the time lost by straggling; None: they change."""
        total = self.late_s.sum()
        rank = int(self.late_s.argmax())
        return rank if total > 0 and self.late_s[rank] > total / 2 else None


def lost_time(
    step_s: np.ndarray, data_s: np.ndarray, wait_s: np.ndarray, ideal_s: float
) -> LostTime:
    """Tell apart what was lost in an interval; all arrays are [ranks, steps], in seconds.

    `ideal_s`: what these steps take a typical rank alone. The typical rank is the one of (lower)
    median pace over the interval, so that of two ranks it is the faster one.
    """
    ready = step_s - wait_s
    pace = ready.sum(axis=1)
    typical = int(np.argsort(pace, kind="stable")[(len(pace) - 1) // 2])
    # The network's own time is what the last rank waits. Steps begin at different times after an
    # evaluation or a checkpoint, so who is last is told by the waits.
    network = wait_s.min(axis=0)
    last = step_s.mean(axis=0) - network
    seconds = float(step_s.mean(axis=0).sum())
    lost = {
        "data": float(data_s[typical].sum()),
        "communication": float(network.sum()),
        "straggling": float((last - ready[typical]).sum()),
    }
    lost["other"] = seconds - ideal_s - sum(lost.values())
    is_last = wait_s.argmin(axis=0) == np.arange(len(wait_s))[:, None]
    late = np.where(is_last, np.maximum(last - ready[typical], 0.0), 0.0)
    late_data = np.clip(np.where(is_last, data_s - data_s[typical], 0.0), 0.0, late)
    return LostTime(seconds, ideal_s, lost, late.sum(axis=1), late_data.sum(axis=1))


def sentence(lost: LostTime, hosts: list[str], network: str = "") -> str | None:
    """What costs most, for a person; None where too little is lost. `hosts` [ranks]; `network`:
    what is known of it."""
    if lost.ideal_s / lost.seconds - 1 > WORTH_TELLING:
        return (
            "faster than the baseline: something else used the machine while one worker alone was "
            "measured; name a calibration of a quiet one with metrics.calibration"
        )
    cause = lost.cause
    if cause is None:
        return None
    share = f"{1 - lost.ideal_s / lost.seconds:.0%} of the time is lost, {lost.ratios[cause]:.0%} "
    return share + _reason(lost, cause, hosts, network)


def network_text(
    speeds: np.ndarray, resent: np.ndarray, hosts: list[str], ceiling: float | None
) -> str:
    """Which machine's link is slow or loses packets, else what the link allows; empty if nothing is
    known. A ring makes all ranks wait alike, so it cannot be seen from waits.

    `speeds` in bytes/s (0: not known), `resent` shares of segments, both [ranks] and told by the
    first rank of every machine; `ceiling`: efficiency (0-1) that the slowest link allows.
    """
    tell = [hosts.index(host) for host in dict.fromkeys(hosts)]
    known = sorted((float(speeds[rank]), rank) for rank in tell if speeds[rank] > 0)
    if known and known[0][0] < known[len(known) // 2][0] / 2:
        found, usual = (
            f"{speed * 8 / 1e9:g} Gbit/s" for speed, _ in (known[0], known[len(known) // 2])
        )
        return f"the link of {hosts[known[0][1]]} runs at {found}, others at {usual}"
    losing = sorted((float(resent[rank]), rank) for rank in tell)
    share, rank = losing[-1]
    if share > MANY_RESENT and (len(tell) == 1 or share > 2 * losing[(len(losing) - 1) // 2][0]):
        return f"{hosts[rank]} sends {share:.1%} of its packets again: cable, card or switch"
    return f"the link allows an efficiency of {ceiling:.0%}" if ceiling is not None else ""


def _reason(lost: LostTime, cause: str, hosts: list[str], network: str) -> str:
    if cause == "data":
        return "waiting for images on all ranks"
    if cause == "communication":
        return "waiting for the network" + (f"; {network}" if network else "")
    if cause == "other":
        return "as ranks compute slower together than alone"
    rank = lost.straggler
    if rank is None:
        return "as ranks wait for each other in turn"
    what = "waits for images" if lost.late_data[rank] > lost.late_s[rank] / 2 else "computes slowly"
    return f"waiting for rank {rank} on {hosts[rank]}, which {what}"
