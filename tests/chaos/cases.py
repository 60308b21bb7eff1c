"""Which fault strikes when: a case is drawn from its seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

START, MIDDLE, END, SIZE, EVALUATION, SAVE = (
    *("start", "mid-epoch", "epoch end", "size change", "evaluation", "save"),
)
MOMENTS = (START, MIDDLE, END, SIZE, EVALUATION, SAVE)
TRAINING = MOMENTS[1:]
WITHIN = (MIDDLE, SIZE)
RESUMABLE = (MIDDLE, SIZE, EVALUATION)
"""Moments at which there are two checkpoints if the first epoch is over."""
ALONE, MPIRUN, LAUNCH, HOSTS, TORCHRUN = "alone", "mpirun", "launch", "hosts", "torchrun"
LAUNCHERS = (ALONE, MPIRUN, LAUNCH)
"""`hvdtrain train` in one process, below `mpirun`, and below `hvdtrain launch`. HOSTS: below `launch` on
two hosts in network namespaces; needs root. TORCHRUN takes the place of the launchers of MPI by `torch`."""
SEVERAL = (MPIRUN, LAUNCH)


@dataclass(frozen=True)
class Kind:
    """Where a fault makes sense, and what is documented to follow."""

    codes: frozenset[int]
    """Exit codes of the job that the fault strikes."""
    says: str = ""
    """Regular expression of a line that must be told; empty: the fault need not be noticed."""
    moments: tuple[str, ...] = MOMENTS
    launchers: tuple[str, ...] = LAUNCHERS
    as_root: bool = False
    """It mounts a file system."""
    inside: bool = False
    """It happens within a rank's process: tests/chaos/inside."""
    leaves: bool = False
    """It kills the launcher, which would have deleted its temporary files."""
    other_end: bool = False
    """The weights may be others than those of the reference run."""


def _kind(codes: str, says: str = "", **more: object) -> Kind:
    return Kind(frozenset(map(int, codes.split())), says, **more)  # type: ignore[arg-type]


KILLED = r"signal 9|SIGKILL|was killed"
STOP = "'kind': 'stop'"
"""The event of an orderly stop."""
STOPPED = "stopped by a signal"
EARLY = "75 129 130 138 143"
"""A stop, in training or before it."""
SIGNALLED = rf"{STOPPED}|{STOP}|interrupted|[Ss]ignal \d+|terminated|before training|ended by"
OTHER_WEIGHTS = "got (other|different) weights"
"""On two ranks, none can be called the one that has others."""
LAUNCHER_KILLED = ("kill-mpirun", "kill-launch")
KINDS = {
    "kill-rank0": _kind("137", KILLED),
    "kill-rank": _kind("137", KILLED, launchers=SEVERAL),
    "kill-mpirun": _kind("75 137", STOP, launchers=SEVERAL, moments=TRAINING, leaves=True),
    "kill-launch": _kind("137", STOP, launchers=(LAUNCH,), moments=TRAINING, leaves=True),
    "kill-all": _kind("137", leaves=True),
    "kill-restart": _kind("0", "attempt 1 ended after", launchers=(LAUNCH,)),
    "stop-5s": _kind("0"),
    "stop-for-ever": _kind("8", "no progress for", launchers=SEVERAL, moments=TRAINING),
    "term-rank": _kind(EARLY, SIGNALLED),
    "term-launcher": _kind(EARLY, SIGNALLED),
    "int-rank": _kind(EARLY, SIGNALLED),
    "int-launcher": _kind(EARLY, SIGNALLED),
    "usr1-rank": _kind(EARLY, SIGNALLED),
    "usr1-launcher": _kind(EARLY, SIGNALLED),
    "term-twice-rank": _kind(EARLY, SIGNALLED),
    "term-twice-launcher": _kind(EARLY, SIGNALLED),
    "int-twice-launcher": _kind(EARLY, SIGNALLED),
    "usr1-twice-launcher": _kind(EARLY, SIGNALLED),
    "disk-full": _kind("6", "No space left on device", as_root=True),
    "read-only": _kind("6", "Read-only file system", as_root=True),
    "run-removed": _kind("0 6", "was removed, and is made anew|error", moments=TRAINING),
    "checkpoint-flipped": _kind("137", "damaged", moments=RESUMABLE),
    "checkpoint-cut": _kind("137", "damaged", moments=RESUMABLE),
    "checkpoint-file-deleted": _kind("137", "cannot be read", moments=RESUMABLE),
    "image-deleted": _kind("3", "cannot read", moments=TRAINING),
    "image-damaged": _kind("3", "truncated", moments=TRAINING),
    "image-replaced": _kind("0", "changed while the run reads", other_end=True, moments=TRAINING),
    "port-taken": _kind("0", "in use", moments=(START,)),
    "stop-60s": _kind("0", moments=(MIDDLE, EVALUATION)),
    "memory-limit": _kind("6 137 134 139", "memory|no new thread|killed|signal", moments=TRAINING),
    "weight-flipped": _kind("9", OTHER_WEIGHTS, launchers=SEVERAL, moments=WITHIN, inside=True),
    "weight-nan": _kind(
        "7 9",
        f"the loss is nan|weights are not finite|{OTHER_WEIGHTS}",
        moments=WITHIN,
        inside=True,
    ),
    "clock-jump": _kind("0", moments=TRAINING, inside=True),
    "rank-hangs": _kind("8", "no progress for", moments=TRAINING, inside=True),
    "read-hangs": _kind("8", "no progress for", moments=TRAINING, inside=True),
    "link-5s": _kind("0", launchers=(HOSTS,), moments=TRAINING),
    "link-slow": _kind("0", launchers=(HOSTS,), moments=TRAINING),
    "link-down": _kind("8 137 205", "lost|no progress", launchers=(HOSTS,), moments=TRAINING),
    "host-dies": _kind(
        "8 137 205", "lost|no progress|signal", launchers=(HOSTS,), moments=TRAINING
    ),
}
QUICK = (
    ("kill-rank0", "kill-rank", "kill-mpirun", "kill-all"),
    ("term-rank", "int-rank", "usr1-rank", "term-twice-rank"),
    ("term-launcher", "int-launcher", "usr1-launcher"),
    ("stop-for-ever", "rank-hangs", "read-hangs"),
    ("disk-full", "read-only", "run-removed"),
    ("checkpoint-flipped", "checkpoint-cut", "checkpoint-file-deleted"),
    ("image-deleted", "image-damaged", "image-replaced"),
    ("weight-flipped", "weight-nan"),
    ("clock-jump", "port-taken", "stop-5s"),
)
"""Faults of different sorts that take seconds: every test run draws one of each sort."""
OWN_CODES = {MPIRUN: frozenset({1})}
"""Of a launcher that was signalled itself: docs/how-to/resume.md."""
TORCHRUN_FAILED = frozenset({1})
"""The code of torchrun where a rank has failed, or it was signalled itself: docs/exit-codes.md."""
TORCHRUN_ENDED = {
    **dict.fromkeys(("kill-all", *LAUNCHER_KILLED), frozenset({137})),
    **dict.fromkeys(("usr1-launcher", "usr1-twice-launcher"), frozenset({138})),
}
"""Where the fault ends torchrun itself: it does not know SIGUSR1."""


OTHER_RANKS = 0.25
"""The share of the cases that go on with 4 ranks instead of 2, or 2 instead of 4."""


@dataclass(frozen=True)
class Case:
    """One fault in one training."""

    seed: int
    fault: str
    moment: str
    ranks: int
    launcher: str
    then_ranks: int | None = None
    """Ranks of the jobs that go on after the fault; None: as many as before."""

    @property
    def kind(self) -> Kind:
        return KINDS[self.fault]

    @property
    def says(self) -> str:
        """Regular expression of a line that must be told."""
        by_torchrun = self.fault == "kill-restart" and self.launcher == TORCHRUN
        return "resumed from" if by_torchrun else self.kind.says

    @property
    def leaves(self) -> bool:
        """The launcher may leave its files: it is killed, or is mpirun, which a second signal ends at once."""
        twice = self.fault.endswith("-twice-launcher") and self.launcher in (MPIRUN, TORCHRUN)
        return self.kind.leaves or twice

    def random(self) -> random.Random:
        """The source of all that is left to chance in this case."""
        return random.Random(f"{self.seed} of {self.fault}")

    def documented(self) -> frozenset[int]:
        """Exit codes of the first job that are right, beside 0."""
        codes = self.kind.codes
        if self.launcher == TORCHRUN:
            return TORCHRUN_FAILED | (codes & {0}) | TORCHRUN_ENDED.get(self.fault, frozenset())
        if self.fault.endswith("-launcher"):
            codes |= OWN_CODES.get(self.launcher, frozenset())
        return codes


def by_torch(case: Case) -> Case:
    """The case with torch's launcher and engine in place of Open MPI and Horovod, where it has several ranks."""
    return replace(case, launcher=TORCHRUN) if case.launcher in SEVERAL else case


def draw(seed: int, most_ranks: int = 4) -> Case:
    """The case of `seed`. Of as many seeds in a row as there are faults, each fault has one."""
    block, place = divmod(seed, len(KINDS))
    fault = random.Random(f"block {block}").sample(sorted(KINDS), len(KINDS))[place]
    kind, chance = KINDS[fault], random.Random(seed)
    launcher = chance.choice(kind.launchers)
    moment = chance.choice(kind.moments)
    if launcher == HOSTS:
        return Case(seed, fault, moment, 2, launcher)
    ranks = 1 if launcher == ALONE else chance.choice([2, 2, most_ranks])
    elastic = random.Random(f"ranks of {seed}").random() < OTHER_RANKS
    others = 6 - ranks if elastic and launcher != ALONE and most_ranks == 4 else None
    return Case(seed, fault, moment, ranks, launcher, others)


def draw_quick(seed: int, possible: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """A case of each sort in QUICK, on at most two ranks: the first ones from `seed` on.

    `possible`: whether a case can be run on this machine; a sort of which none can is left out.
    """
    seeds = range(seed, seed + 4 * len(KINDS))
    cases = [case for case in (draw(each, most_ranks=2) for each in seeds) if possible(case)]
    firsts = (next((case for case in cases if case.fault in sort), None) for sort in QUICK)
    return [case for case in firsts if case is not None]
