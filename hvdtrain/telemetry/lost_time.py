"""Where the time goes that more ranks lose against one rank alone: arithmetic on measured steps.

In a synchronous step every rank works, then waits until the last one has sent its gradients and
the network has summed them. Three times of each rank and step tell it apart:

    step = images awaited + computing + gradients awaited

The rank that comes last waits for nobody: its wait is the network's. What the others wait longer is
for that rank. Against a rank of typical pace:

    data           the typical rank waited for images
    straggling     the last rank came later than the typical one
    communication  the last rank waited for the network
    padding        the ranks trained on places that only fill up the last batch of an epoch
    other          the typical rank computes slower than alone (cores, memory or power are shared)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAUSES = ("data", "communication", "straggling", "padding", "other")
WORTH_TELLING = 0.05
"""Lost or gained share of the time below which nothing is said."""
MANY_RANKS = 3
"""More are counted, not named."""
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
    """[ranks]: how much later than the typical rank each came, in the steps it came later."""
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
    def stragglers(self) -> list[int]:
        """The ranks that are late by over half of the time lost by straggling, each of them; none
        where ranks are late in turn."""
        half = self.by_cause["straggling"] / 2
        return [rank for rank, late in enumerate(self.late_s.tolist()) if late > max(0.0, half)]

    @property
    def straggler(self) -> int | None:
        """The one rank of which this is true."""
        found = self.stragglers
        return found[0] if len(found) == 1 else None


def lost_time(
    step_s: np.ndarray,
    data_s: np.ndarray,
    wait_s: np.ndarray,
    ideal_s: float,
    padding_s: float = 0.0,
) -> LostTime:
    """Tell apart what was lost in an interval; all arrays are [ranks, steps], in seconds.

    `ideal_s`: what the images of these steps take a typical rank alone, `padding_s`: what the
    places without an image do. The typical rank is the one of (lower)
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
    lost["padding"] = padding_s
    lost["other"] = seconds - ideal_s - sum(lost.values())
    late = np.maximum(wait_s[typical] - wait_s, 0.0)
    late_data = np.clip(data_s - data_s[typical], 0.0, late)
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
    if cause == "padding":
        return "on places that only fill up the last batch of an epoch: it is large for the dataset"
    return _whom(lost, hosts)


def _whom(lost: LostTime, hosts: list[str]) -> str:
    """The ranks that are waited for, by their machine if they are all of it."""
    ranks = lost.stragglers
    if not ranks:
        return "as ranks wait for each other in turn"
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
