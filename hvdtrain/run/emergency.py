"""A checkpoint when a rank fails in mid-epoch, so that the updates since the last one are not lost.

**A rank that gets no batch** (a damaged image, a file that is gone: exit code 3) stands between two
updates. The others are in the next one, of which no sum can be complete without it. It has Horovod refuse
those sums, which ends the step on all ranks before anything was updated; the others take back what their
forward passes did to batch-norm statistics. Then all ranks agree that they are at the same update, save as
usual, and end with the same error. So nothing is lost, and `--resume` goes on with the same bits.

**A rank that gets no images in an evaluation** has all ranks end it, and save between two updates.

**Ranks that fail together** (more bad images than allowed) save as usual.

**A rank that is gone** (exit code 5 on the others) cannot give its batch-norm statistics. Where there are
none, rank 0 saves by itself, if it has begun no update that is not complete: its weights are those that all
ranks had. Where there are some, or PowerSGD keeps errors, the state of that rank is not known, and nothing
is written.

Every wait has a limit, after which the process ends with the error as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hvdtrain.comm.agreement import Stops, any_rank, fault_text, shared_fault
from hvdtrain.engine.checkpoint import checkpoint_name
from hvdtrain.engine.evaluate import rank_buffers
from hvdtrain.errors import CommError, DataError, HvdtrainError, SumRefused
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.parts import Run
from hvdtrain.run.saving import save
from hvdtrain.streams import print_error
from hvdtrain.telemetry.meter import Meter

AGREE_S = 20.0
"""Longest wait for the other ranks, beyond three times the longest step: they are at most a step away."""
SAVE_S = 120.0
"""Longest time for the checkpoint."""

T = TypeVar("T")


class _OthersFailedError(CommError):
    """Another rank has no first batch."""


class Rescue:
    """What is needed to save in an emergency, on one rank; `report` reports the steps up to a given one."""

    def __init__(
        self, run: Run, epoch: Epoch, stops: Stops, meter: Meter, report: Callable[[int], object]
    ) -> None:
        self._run, self._epoch, self._stops = run, epoch, stops
        self._meter, self._report = meter, report
        self._began = run.state.progress.step
        self._own: HvdtrainError | None = None
        """Why this rank has no batch."""
        self._first = True
        self._slowest_s = 0.0

    def batches(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; every rank has as many. Raises this rank's fault, or that another has one."""
        while True:
            item = None
            try:
                item = next(batches, None)
            except HvdtrainError as error:
                self._own = error
            if self._first and any_rank(self._run.comm, self._own is not None):
                raise self._own or _OthersFailedError("another rank has no batch")
            if self._own is not None:
                raise self._own
            if item is None:
                return
            self._first, began = False, time.monotonic()
            yield item
            self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    def saved(self, error: HvdtrainError) -> HvdtrainError:
        """Save if that is possible; the error to raise, which names the checkpoint."""
        if error is self._own or isinstance(error, (SumRefused, _OthersFailedError)):
            return self._agreed(error)
        if isinstance(error, DataError) and error.everywhere:
            return saved_by_all(self._run, error, self._report_last)
        if isinstance(error, CommError) and self._run.comm.rank == 0:
            return self._saved_alone(error)
        return error

    def _agreed(self, error: HvdtrainError) -> HvdtrainError:
        """Bring all ranks to the same update, and save; every rank comes here."""
        state = self._run.state
        try:
            with _limited(AGREE_S + 3 * self._slowest_s, error):
                if isinstance(error, SumRefused):
                    state.reducer.abandon()
                    state.statistics.restore()
                elif not self._first:  # the others are in the next step
                    self._stops.check()
                    state.refuse_step()
                self._stops.enter()
                mine = [fault_text(self._own), state.progress.step, state.updating]
                found = self._run.comm.gather_text(json.dumps(mine))
        except CommError as gone:
            return self._own or gone
        texts, steps, updating = zip(*map(json.loads, found), strict=True)
        shared = shared_fault(texts, self._run.comm.size)
        if shared is None:
            return error
        if len(set(steps)) > 1 or any(updating):
            return _longer(shared, "no checkpoint is written: the ranks are at different updates")
        return saved_by_all(self._run, shared, self._report_last)

    def _saved_alone(self, fault: HvdtrainError) -> HvdtrainError:
        run, state = self._run, self._run.state
        saved = state.progress.step == run.snapshots.saved_step
        errors = state.reducer.memory is not None  # those of the rank that is gone are lost
        if saved or state.updating or errors or rank_buffers(state):
            return fault
        with _limited(SAVE_S, fault):
            try:
                before = self._epoch.samples_after(self._last - self._meter.steps)
                samples = self._epoch.samples_after(self._last) - before
                state.progress = state.progress.after_report(samples, self._meter.seconds)
                run.snapshots.save_alone()
            except HvdtrainError as error:
                return _longer(fault, f"no checkpoint is written: {error}")
        return _longer(fault, _written(self._run))

    def _report_last(self) -> None:
        """Report the steps since the last report."""
        self._run.state.gradient_norm = None
        if self._meter.steps:
            self._report(self._last)

    @property
    def _last(self) -> int:
        """The last step of this pass that is complete."""
        return self._run.state.progress.step - self._began - 1


@contextlib.contextmanager
def rescued(
    run: Run, epoch: Epoch, stops: Stops, meter: Meter, report: Callable[[int], object]
) -> Iterator[Rescue]:
    """A context in which a failing rank leads to a checkpoint, where all ranks are known to be at the same
    update; the error then names it."""
    rescue = Rescue(run, epoch, stops, meter, report)
    try:
        yield rescue
    except HvdtrainError as error:
        raise rescue.saved(error) from error.__cause__


def saved_by_all(run: Run, fault: HvdtrainError, report: Callable[[], object]) -> HvdtrainError:
    """Save on all ranks, which are at the same update; the error to raise, which names the checkpoint.

    `report` reports the steps since the last report.
    """
    if run.state.progress.step == run.snapshots.saved_step:
        return fault
    text = ""
    with _limited(SAVE_S, fault):
        try:
            report()
            save(run, wait=True)
        except HvdtrainError as error:
            text = f"no checkpoint of update {run.state.progress.step} is written: {error}"
        with contextlib.suppress(CommError):
            # Who ends sooner has the launcher end rank 0 in its write.
            any_rank(run.comm, False)
    return _longer(fault, text or _written(run))


def _written(run: Run) -> str:
    progress = run.state.progress
    path = run.paths.checkpoints / checkpoint_name(progress.position)
    return f"update {progress.step} is saved in {path}: go on with --resume {run.paths.root}"


def _longer(fault: HvdtrainError, text: str) -> HvdtrainError:
    longer = type(fault)(f"{fault}; {text}")
    longer.everywhere = fault.everywhere
    return longer


@contextlib.contextmanager
def _limited(seconds: float, fault: HvdtrainError) -> Iterator[None]:
    """End the process with `fault` if the context takes longer."""

    def end() -> None:
        print_error(str(fault))
        os._exit(fault.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
