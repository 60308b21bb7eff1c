"""The cores that a rank may use: by binding, and by the CPU quota of its control group."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def share_of(mine: Sequence[int], sets: Sequence[frozenset[int]], quota: float | None) -> int:
    """Cores for a rank bound to `mine`, if the ranks of its host are bound to `sets`.

    Cores of several ranks are shared, as is the `quota` of the host (cores; None: no limit).
    """
    share = sum(1 / sum(core in cores for cores in sets) for core in mine)
    return max(1, int(share if quota is None else min(share, quota / len(sets))))


def quota_cores(group: str = "", root: Path = CGROUPS) -> float | None:
    """The CPU quota of the control group, version 2 or 1, in cores; None without one."""
    limits = []
    for folder in {root, root / group.lstrip("/")}:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(int(quota) / int(period))
    for folder in {root / "cpu", root / "cpu" / group.lstrip("/")}:
        with contextlib.suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
            limits += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(limits, default=None)


def own_group(proc: Path = Path("/proc/self/cgroup")) -> str:
    """The path of this process's control group; empty if it is not known."""
    with contextlib.suppress(OSError):
        for line in proc.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "cpu" in controllers.split(","):
                return path
    return ""


def idle_text(launcher: set[int], sets: Sequence[frozenset[int]]) -> str:
    """A warning if binding leaves cores idle that the launcher itself may use; empty if not."""
    idle = launcher - frozenset().union(*sets)
    if not idle or len(sets) < 2:
        return ""
    return (
        f"the ranks are bound to {len(launcher) - len(idle)} of {len(launcher)} cores; the others "
        "are idle: start with hvdtrain launch, or with mpirun --bind-to none"
    )
