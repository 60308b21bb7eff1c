"""Agreement between ranks: on errors, on values, on whether to stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from hvdtrain import activity, errors
from hvdtrain.comm.ranks import Comm, Handle
from hvdtrain.errors import HvdtrainError
from hvdtrain.signals import REPEAT_S, HeardStops, StopSignals, parent_gone
from hvdtrain.streams import print_error_line, show_cursor

AGREE_S = 0.6
"""Time from one agreement on a stop to the next. Open MPI ends a rank a second after SIGTERM unless
it is told to wait longer."""
MOST_STEPS = 1000
"""Most steps from one agreement to the next, however short they are."""


def any_rank(comm: Comm, flag: bool) -> bool:
    """True on every rank if `flag` is true on at least one."""
    return bool(comm.sum_(torch.tensor([float(flag)]), "any_rank").item())


@contextlib.contextmanager
def together(comm: Comm) -> Iterator[None]:
    """A context that turns an HvdtrainError on any rank into the same error on every rank.

    For set-up only: the body must not call collectives. Equal messages are shown once.
    """
    fault: HvdtrainError | None = None
    try:
        yield
    except HvdtrainError as error:
        fault = error
    shared = shared_fault(comm.gather_text(fault_text(fault)), comm.size)
    if shared is not None:
        raise shared from None


def fault_text(fault: HvdtrainError | None) -> str:
    """An error as text for the other ranks, as of its nearest kind in `hvdtrain.errors`; empty without one."""
    if fault is None:
        return ""
    kinds = [kind.__name__ for kind in type(fault).__mro__]
    return f"{next(kind for kind in kinds if hasattr(errors, kind))}\n{fault}"


def shared_fault(texts: Sequence[str], ranks: int) -> HvdtrainError | None:
    """One error for all `ranks`, of the `fault_text` of each; None if none has an error."""
    faults = {rank: text for rank, text in enumerate(texts) if text}
    if not faults:
        return None
    kind, _, message = next(iter(faults.values())).partition("\n")
    if len(faults) < ranks or len(set(faults.values())) > 1:
        message = "\n".join(
            f"rank {rank}: {line}" for rank, text in faults.items() for line in text.split("\n")[1:]
        )
    shared: HvdtrainError = getattr(errors, kind)(message)
    shared.everywhere = True
    return shared


def require_equal(comm: Comm, what: str, value: str, kind: type[HvdtrainError]) -> None:
    """Raise `kind` on every rank unless `value` is the same on all."""
    values: Sequence[str] = comm.gather_text(value)
    other = next((r for r, v in enumerate(values) if v != values[0]), None)
    if other is not None:
        fault = kind(
            f"{what} differs between ranks: rank 0 has {values[0]}, rank {other} has {values[other]}"
        )
        fault.everywhere = True
        raise fault


class Stops:
    """Whether some rank was asked to stop, and whether rank 0 finds a checkpoint due: all ranks know
    within about `AGREE_S`.

    Ranks cannot decide by their own clocks when to call a collective. So they count steps, and how
    many make up `AGREE_S` follows from the time of the last ones, which the agreement sums as well.
    It is on the way during one step, so that no rank waits for it.
    """

    def __init__(
        self,
        signals: StopSignals,
        comm: Comm,
        clock: Callable[[], float] = time.monotonic,
        save_due: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] | None = None,
        asked: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`save_due` counts on rank 0 only. `say` shows a line to the user; it may be called by another
        thread. `asked`: why this rank was asked to stop, other than by a signal."""
        self.agreed = False
        """The same on all ranks: some rank was asked to stop."""
        self.saving = False
        """The same on all ranks: a checkpoint is due."""
        self.failing = self.failed = False
        """This rank, or the same on all ranks: some rank, cannot go on."""
        self._save_due, self._asked = save_due, asked
        self._stale = False
        """What is on the way about a checkpoint was asked before the last one."""
        self._signals, self._comm, self._clock = signals, comm, clock
        self._calls, self._every = 0, 1
        self._since = clock()
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._handle: Handle | None = None
        self._say, self._saying = say, threading.Lock()
        if isinstance(signals, HeardStops):
            signals.on_request, signals.on_end = self.tell, self._last_words
            if signals.requested:
                self.tell()

    def tell(self) -> None:
        """Say once that the run is about to stop: on rank 0, as soon as it knows."""
        with self._saying:
            say, self._say = self._say, None
        if say is not None and self._comm.rank == 0:
            step_s = activity.present().step_s
            takes = "" if step_s is None else f", {step_s:.1f} s" if step_s >= 0.05 else ", < 0.1 s"
            why = f"{cause}: " if (cause := self._asked()) else ""
            say(
                f"{why}stopping after this step{takes}, with a checkpoint; another Ctrl-C or SIGTERM, "
                f"{REPEAT_S:.0f} s later or more, ends at once and without"
            )

    def _last_words(self) -> None:
        show_cursor()
        if self._comm.rank == 0:
            print_error_line("hvdtrain: ended by a second signal, without a checkpoint of now")

    @property
    def requested(self) -> bool:
        """This rank was asked to stop, or its launcher is gone, which would never end it."""
        return self._signals.requested or self._asked() is not None or self.orphaned

    @property
    def cause(self) -> str:
        """Why the run stops, as far as this rank knows."""
        if self.orphaned:
            return "as its launcher has ended"
        if (asked := self._asked()) is not None:
            return f"as {asked}"
        own = self._signals.requested or self._comm.size == 1
        return "by a signal" if own else "by a signal or notice to another rank"

    @property
    def orphaned(self) -> bool:
        """The launcher of this rank has ended. One process may well outlive the shell it is from."""
        return self._comm.size > 1 and parent_gone()

    def enter(self) -> None:
        """A pass begins, whose steps may take longer than those before; every rank calls it."""
        if self._handle is not None:
            self._finish()
        self._calls, self._every = 0, 1

    def check(self) -> bool:
        """`agreed` or `failed`, as of now or of a few steps ago; every rank calls it once a step."""
        if self._comm.size == 1:
            self.agreed |= self.requested
            self.failed |= self.failing
            self.saving |= self._save_due()
            if self.agreed:
                self.tell()
        elif self._handle is not None:
            self._finish()
        else:
            self._calls += 1
            if self._calls >= self._every:
                self._begin()
        return self.agreed or self.failed

    def settle(self) -> bool:
        """`agreed` as of now: waits for all ranks, and every rank calls it, between two epochs.

        What a rank was asked in the last moments of an epoch would else wait until the first images of the
        next one are decoded; a launcher that ends its ranks gives them a few seconds only.
        """
        if self._comm.size == 1:
            return self.check()
        if self._handle is not None:
            self._finish()
        self._begin()
        self._finish()
        return self.agreed

    def saved(self) -> None:
        """A checkpoint was made; every rank calls it."""
        self.saving, self._stale = False, self._handle is not None

    def _begin(self) -> None:
        now = self._clock()
        saving = self._comm.rank == 0 and self._save_due()
        self._sums[0], self._sums[1] = float(self.requested), now - self._since
        self._sums[2], self._sums[3] = float(saving), float(self.failing)
        self._since = now
        self._handle = self._comm.sum_async_(self._sums, "stop")

    def _finish(self) -> None:
        assert self._handle is not None
        self._handle.wait()
        self._handle = None
        stops, seconds, saves, failing = self._sums.tolist()
        self.agreed |= stops > 0
        self.failed |= failing > 0
        if self.agreed:
            self.tell()
        self.saving |= saves > 0 and not self._stale
        self._stale = False
        steps = AGREE_S * self._comm.size * self._calls / max(seconds, 1e-9)
        self._every = max(1, min(MOST_STEPS, int(steps)))
        self._calls = 1  # this step
