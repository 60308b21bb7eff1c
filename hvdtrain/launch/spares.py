"""The hosts that a job uses, attempt after attempt: a spare one takes the place of a host that is gone or fails again
and again, and where fewer are allowed, the job goes on without it until it is back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

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
AT_ONCE = 32
"""Nodes that are asked at the same time."""
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


Slot = tuple[Host, int | None, int | None]
"""A host with the cores of each rank and its GPUs."""
Gone = Callable[[Sequence[Host]], Collection[str]]
"""Which of some hosts do not answer now."""


class Pool:
    """The hosts of a job in their order, and the spare ones."""

    def __init__(
        self,
        placement: Placement,
        nodes: int | None,
        least: int | None = None,
        can_share: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """The first `nodes` hosts of `placement` are used (None: all), later never fewer than `least`
        (None: always as many). `can_share`: whether so many ranks can share the global batch. Raises
        ConfigError."""
        every = list(zip(placement.hosts, placement.cores, placement.gpus, strict=True))
        self._nodes = len(every) if nodes is None else nodes
        self._least = self._nodes if least is None else least
        if self._nodes > len(every):
            raise ConfigError(f"--nodes {nodes}: only {_count(len(every), 'host')} given")
        if self._least > self._nodes:
            raise ConfigError(f"--min-nodes {least}: only {_count(self._nodes, 'host')} used")
        if self._nodes < len(every) and len({host.slots for host in placement.hosts}) > 1:
            raise ConfigError(
                "--nodes: a spare takes any host's place: give all hosts the same number of slots"
            )
        self._used: list[Slot] = every[: self._nodes]
        self._spares: list[Slot] = every[self._nodes :]
        self._away: list[Slot] = []
        self._whole = not self._spares and not self._may_shrink
        self._placement, self._can_share = placement, can_share
        self._in_a_row: dict[str, int] = {}

    @property
    def _may_shrink(self) -> bool:
        return self._least < self._nodes

    @property
    def has_spares(self) -> bool:
        """Whether a host could be replaced."""
        return bool(self._spares)

    @property
    def is_part(self) -> bool:
        """Whether the hosts may change: a launcher must be told them."""
        return not self._whole

    @property
    def lacks_hosts(self) -> bool:
        """Whether fewer hosts are used than at the beginning, and one that is away may come back."""
        return bool(self._away) and len(self._used) < self._nodes

    def placement(self) -> Placement:
        """Of the ranks on the hosts that are used now."""
        if self._whole:
            return self._placement
        hosts = [host for host, _, _ in self._used]
        cores = [None if each is None else each * host.slots for host, each, _ in self._used]
        return place(hosts, cores, [gpus for _, _, gpus in self._used])

    def renew(self, lines: Sequence[str], gone: Gone) -> list[str]:
        """Replace or leave out hosts after a crash; returns what there is to tell.

        `lines`: the last ones of the launcher. `gone` is asked only if the hosts may change.
        """
        failed = blamed(lines)
        for host, _, _ in self._used:
            again = self._in_a_row.get(host.name, 0) + 1
            self._in_a_row[host.name] = again if _named(host, failed) else 0
        if not self._spares and not self._may_shrink:
            return []
        every = (*self._used, *self._spares, *self._away)
        absent = set(gone([host for host, _, _ in every]))
        absent |= silent(lines, [host for host, _, _ in self._used])
        texts, used, left_out, replaced = [], list[Slot](), list[Slot](), list[Slot]()
        for slot in self._used:
            name = slot[0].name
            if (why := self._why_out(slot, absent)) is None:
                used.append(slot)
                continue
            spare = next((one for one in self._spares if one[0].name not in absent), None)
            if spare is not None:
                self._spares.remove(spare)
                used.append(spare)
                replaced.append(slot)
                texts.append(f"{name} {why}: it is left out, {spare[0].name} takes its place")
            elif self._may_shrink:
                left_out.append(slot)
                texts.append(f"{name} {why}: it is left out")
            else:
                used.append(slot)
                texts.append(f"{name} {why}, and no spare host answers")
        if not self._may_shrink:
            self._used = used
            return texts
        return [*texts, *self._resize(used, left_out, replaced, absent)]

    def returned(self, gone: Gone) -> bool:
        """Whether hosts that were away answer, and the job can go on with more than now."""
        absent = gone([host for host, _, _ in self._away])
        back = [slot for slot in self._away if slot[0].name not in absent]
        return self._most([*self._used, *self._spares, *back]) > len(self._used)

    def _why_out(self, slot: Slot, absent: Collection[str]) -> str | None:
        if slot[0].name in absent:
            return "does not answer"
        if self._in_a_row[slot[0].name] >= AGAIN:
            return f"has failed {AGAIN} times in a row"
        return None

    def _resize(
        self,
        used: list[Slot],
        left_out: list[Slot],
        replaced: list[Slot],
        absent: Collection[str],
    ) -> list[str]:
        """Use as many of the hosts that answer as can share the global batch."""
        back = [slot for slot in self._away if slot[0].name not in absent]
        idle = [slot for slot in self._spares if slot[0].name not in absent]
        answering = [*used, *idle, *back]
        number = self._most(answering)
        if number == 0:
            self._used = [*used, *left_out]
            need = f"--min-nodes {self._least}"
            return [
                f"of {_count(len(answering), 'host')} that can be used no number can go on ({need})"
            ]
        before = {host.name for host, _, _ in self._used}
        self._used = answering[:number]
        # One that failed again and again is away for good.
        gone = [slot for slot in (*self._away, *left_out, *replaced) if slot[0].name in absent]
        asleep = [slot for slot in self._spares if slot[0].name in absent]
        self._spares, self._away = [*answering[number:], *asleep], gone
        new = [host.name for host, _, _ in self._used if host.name not in before]
        texts = [f"{name} answers again: it takes part" for name in new if name in _names(back)]
        ranks = sum(host.slots for host, _, _ in self._used)
        if number != len(before):
            texts.append(f"going on with {_count(number, 'host')} and {_count(ranks, 'rank')}")
        return texts

    def _most(self, slots: Sequence[Slot]) -> int:
        """How many of the first of `slots` are to be used; 0 if no number is possible."""
        for number in range(min(len(slots), self._nodes), self._least - 1, -1):
            if self._can_share(sum(host.slots for host, _, _ in slots[:number])):
                return number
        return 0


def _names(slots: Sequence[Slot]) -> set[str]:
    return {host.name for host, _, _ in slots}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _named(host: Host, names: Collection[str]) -> bool:
    """Launchers may leave out the domain."""
    return any(name == host.name or name == host.name.partition(".")[0] for name in names)


def away_in_slurm(hosts: Sequence[Host]) -> set[str]:
    """The nodes on which Slurm would start nothing, and those on which it tries in vain; empty if sinfo does
    not say.

    Slurm takes a lost node for a good one until its SlurmdTimeout is over, by default five minutes. Until then
    mpirun would wait for it, without end.
    """
    names = [host.name for host in hosts]
    try:
        text = ask("sinfo", "--noheader", "--Node", "--nodes", ",".join(names), "--format", "%N %t")
    except ResourceError:
        return set()
    rows = [line.split() for line in text.splitlines()]
    away = {row[0] for row in rows if len(row) == 2 and AWAY.search(row[1])}
    asked = [name for name in names if name not in away]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(_starts_a_task, asked))
    # Where none does, it is not the nodes: the one that asks is among them.
    mute = {name for name, answer in zip(asked, answers, strict=True) if not answer}
    return away | mute if any(answers) else away


def _starts_a_task(node: str) -> bool:
    """Whether Slurm starts a task on a node of this job now."""
    where = ("--nodes=1", "--ntasks=1", "--ntasks-per-node=1", f"--nodelist={node}")
    try:
        ask("srun", "--overlap", *where, "true")
    except ResourceError:
        return False
    return True
