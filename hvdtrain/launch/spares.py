"""Hosts of a job beyond those it needs: one takes the place of a host that is gone or fails again and again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.launch.commands import ENDLESS
from hvdtrain.launch.hosts import Host
from hvdtrain.launch.job import ask
from hvdtrain.launch.placement import Placement, place

AGAIN = 2
"""Failures in a row after which a host is left out."""
BLAMED = tuple(
    re.compile(text)
    for text in (
        r"mpirun noticed that process rank \d+ with PID \d+ on node (\S+) exited",
        r"Remote daemon:\s+\[\[\d+,\d+\],\d+\] on node (\S+)",
        r"srun: error: (\S+): tasks? [\d,-]+: (?!Exited)",
        r"srun: error: Node failure on (\S+)",
        r"failed on node (\S+?):",
        r"no progress for .* rank \d+ on ([^\s,:]+)[^:]*;",
    )
)
"""Lines of launchers and ranks that name the host of a fault."""
ENDED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: ")
AWAY = re.compile(r"down|fail|drain|drng|boot|power|reboot|unk|\*", re.IGNORECASE)
"""States of a node on which Slurm starts nothing. Source: sinfo(1), NODE STATE CODES."""


def blamed(lines: Sequence[str]) -> set[str]:
    """The hosts that these lines name as those of a fault."""
    return {match[1] for line in lines for rule in BLAMED if (match := rule.search(line))}


def silent(lines: Sequence[str], hosts: Sequence[Host]) -> set[str]:
    """The hosts whose tasks srun waited for in vain when it was given up."""
    ends = [k for k, line in enumerate(lines) if line.startswith(ENDLESS)]
    if not ends:
        return set()
    heard = {match[1] for line in lines if (match := ENDED.search(line))}
    return {host.name for host in hosts if heard and not _named(host, heard)}


class Pool:
    """The hosts of a job in their order, and the spare ones."""

    def __init__(self, placement: Placement, nodes: int | None) -> None:
        """The first `nodes` hosts of `placement` are used (None: all). Raises ConfigError."""
        every = list(zip(placement.hosts, placement.cores, placement.gpus, strict=True))
        nodes = len(every) if nodes is None else nodes
        if nodes > len(every):
            raise ConfigError(f"--nodes {nodes}: only {len(every)} hosts are given")
        if nodes < len(every) and len({host.slots for host in placement.hosts}) > 1:
            raise ConfigError(
                "--nodes: a spare takes any host's place: give all hosts the same number of slots"
            )
        self._used, self._spares = every[:nodes], every[nodes:]
        self._whole = not self._spares
        self._placement = placement
        self._in_a_row: dict[str, int] = {}

    @property
    def has_spares(self) -> bool:
        """Whether a host could be replaced."""
        return bool(self._spares)

    @property
    def is_part(self) -> bool:
        """Whether there are or were spares: a launcher must be told the hosts."""
        return not self._whole

    def placement(self) -> Placement:
        """Of the ranks on the hosts that are used now."""
        if self._whole:
            return self._placement
        hosts = [host for host, _, _ in self._used]
        cores = [None if each is None else each * host.slots for host, each, _ in self._used]
        return place(hosts, cores, [gpus for _, _, gpus in self._used])

    def renew(
        self, lines: Sequence[str], gone: Callable[[Sequence[Host]], Collection[str]]
    ) -> list[str]:
        """Replace hosts after a crash; returns what there is to tell.

        `lines`: the last ones of the launcher. `gone`: which of some hosts do not answer now; it is
        asked only if there are spares.
        """
        failed = blamed(lines)
        for host, _, _ in self._used:
            again = self._in_a_row.get(host.name, 0) + 1
            self._in_a_row[host.name] = again if _named(host, failed) else 0
        if not self._spares:
            return []
        absent = set(gone([host for host, _, _ in (*self._used, *self._spares)]))
        absent |= silent(lines, [host for host, _, _ in self._used])
        texts = []
        for place_, (host, _, _) in enumerate(self._used):
            if host.name in absent:
                why = "does not answer"
            elif self._in_a_row[host.name] >= AGAIN:
                why = f"has failed {AGAIN} times in a row"
            else:
                continue
            spare = next((one for one in self._spares if one[0].name not in absent), None)
            if spare is None:
                texts.append(f"{host.name} {why}, and no spare host answers")
                continue
            self._spares.remove(spare)
            self._used[place_] = spare
            texts.append(f"{host.name} {why}: it is left out, {spare[0].name} takes its place")
        return texts


def _named(host: Host, names: Collection[str]) -> bool:
    """Launchers may leave out the domain."""
    return any(name == host.name or name == host.name.partition(".")[0] for name in names)


def away_in_slurm(hosts: Sequence[Host]) -> set[str]:
    """The nodes on which Slurm would start nothing; empty if sinfo does not say."""
    names = [host.name for host in hosts]
    try:
        text = ask("sinfo", "--noheader", "--Node", "--nodes", ",".join(names), "--format", "%N %t")
    except ResourceError:
        return set()
    rows = [line.split() for line in text.splitlines()]
    return {row[0] for row in rows if len(row) == 2 and AWAY.search(row[1])}
