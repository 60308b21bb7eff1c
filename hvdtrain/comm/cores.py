"""The cores that a rank may use: by binding, and by the CPU quota of its control group."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def share_of(
    mine: Sequence[int],
    sets: Sequence[frozenset[int]],
    quotas: Mapping[str, float],
    groups: Sequence[Container[str]],
) -> int:
    """Cores for a rank bound to `mine`, if the ranks of its host are bound to `sets`.

    Cores of several ranks are shared. `quotas`: those that hold for this rank, as `quotas_of` gives
    them; each is shared by the ranks of the host in whose control `groups` [ranks] it is.
    """
    shares = [sum(1 / sum(core in cores for cores in sets) for core in mine)]
    shares += [cores / sum(name in names for names in groups) for name, cores in quotas.items()]
    return max(1, int(min(shares)))


def quotas_of(group: str = "", root: Path = CGROUPS) -> dict[str, float]:
    """The CPU quotas, in cores, of a control group and those that it is in, version 2 or 1.

    The keys are equal in two processes of this host if and only if the group is the same.
    """
    quotas: dict[str, float] = {}
    for folder in _path_to(root, group):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            quota, period = (folder / "cpu.max").read_text().split()
            quotas[_key(folder)] = int(quota) / int(period)
    for folder in _path_to(root / "cpu", group):
        with contextlib.suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                quotas[_key(folder)] = int(quota) / int(period)
    return quotas


def _path_to(root: Path, group: str) -> list[Path]:
    """The folders from `root` to the group's own."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _key(folder: Path) -> str:
    """By the inode: a container sees its own group as the root, so paths do not tell two apart."""
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


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
