"""Scaling efficiency of one interval after the other, and of all of them."""

from __future__ import annotations

from hvdtrain.telemetry.lost_time import CAUSES, LostTime, sentence
from hvdtrain.telemetry.reports import RunScaling, Scaling


class EfficiencySums:
    """Sums of the lost time of several ranks, by cause; the same on all ranks."""

    def __init__(self) -> None:
        self._actual_s = 0.0
        self._ideal_s = 0.0
        self._lost_s = dict.fromkeys(CAUSES, 0.0)

    def add(
        self, lost: LostTime, hosts: list[str], network: str, ceiling: float | None = None
    ) -> Scaling:
        """Count an interval, and report it. `hosts` [ranks]; `network` is from `network_text`;
        `ceiling`: efficiency (0-1) that the slowest link allows."""
        self._actual_s += lost.seconds
        self._ideal_s += lost.ideal_s
        for cause in CAUSES:
            self._lost_s[cause] += lost.by_cause[cause]
        return Scaling(
            efficiency=lost.ideal_s / lost.seconds,
            efficiency_so_far=self._ideal_s / self._actual_s,
            efficiency_ceiling=ceiling,
            lost=lost.ratios,
            cause=lost.cause,
            straggler=lost.straggler if lost.cause == "straggling" else None,
            explanation=sentence(lost, hosts, network),
        )

    def overall(self) -> RunScaling:
        """Efficiency and lost time of all intervals so far."""
        if not self._actual_s:
            return RunScaling()
        lost = {cause: seconds / self._actual_s for cause, seconds in self._lost_s.items()}
        return RunScaling(self._ideal_s / self._actual_s, lost)
