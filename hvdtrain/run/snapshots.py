"""When checkpoints are written, and how: the state is copied in the loop, and a thread writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from hvdtrain import activity
from hvdtrain.checkpoint_files import BUFFERS_FILE, ERRORS_FILE, MEASURES_FILE
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.config.schema import Checkpoint as Settings
from hvdtrain.engine.checkpoint import (
    RANKS,
    Tensors,
    contents,
    metadata,
    write_checkpoint,
)
from hvdtrain.engine.checkpoint_errors import gather_errors
from hvdtrain.engine.evaluate import pooled_statistics, rank_buffers
from hvdtrain.engine.step import State
from hvdtrain.errors import TrainingError
from hvdtrain.paths import RunPaths
from hvdtrain.run.guard.numbers import check_state, not_finite
from hvdtrain.run.lock import RunLock
from hvdtrain.run.mirror import Mirror
from hvdtrain.run.snapshot_writer import Buffers, Writer
from hvdtrain.telemetry.reports import Checkpoint, Eval, Note
from hvdtrain.telemetry.sinks import Sinks

SHORTEST_S = 60.0
"""Between two checkpoints, however little they cost, unless `checkpoint.every_minutes` is shorter."""
CLOSE_S = 120.0
"""Longest wait for a checkpoint that is being written when a run ends by an error."""


class Cadence:
    """When a checkpoint is due, by the clock of this rank and the cost of the last one."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._since = clock()
        self.cost_s = 0.0
        """Time that training lost by the last checkpoint; 0 before it."""

    @property
    def interval_s(self) -> float | None:
        """Time from one checkpoint to the next; None if time does not count."""
        if self._settings.every_minutes is None:
            return None
        affordable = max(SHORTEST_S, self.cost_s / self._settings.overhead)
        return min(60 * self._settings.every_minutes, affordable)

    def due(self) -> bool:
        """Whether the interval is over."""
        return self.interval_s is not None and self._clock() - self._since >= self.interval_s

    def after(self, step: int) -> bool:
        """Whether a checkpoint follows that update by `checkpoint.every_steps`."""
        return self._settings.every_steps is not None and step % self._settings.every_steps == 0

    def saved(self, cost_s: float) -> None:
        """A checkpoint was made, for which training waited so long."""
        self._since, self.cost_s = self._clock(), cost_s


@dataclass
class Snapshots:
    """Saves the state of a run; every rank has one, and rank 0 writes."""

    state: State
    paths: RunPaths
    sinks: Sinks
    cadence: Cadence
    labels: dict[str, Any]
    """What must be equal in the run that loads a checkpoint."""
    about: dict[str, Any]
    """What else a checkpoint keeps."""
    keep: Keep
    describe: Callable[[], None] = lambda: None
    """Writes the files that say what the run is."""
    evaluation: Eval | None = None
    """The last one: a checkpoint after the same update keeps its accuracy."""
    lock: RunLock | None = None
    """On rank 0, of the run directory."""
    mirror: Mirror | None = None
    """On rank 0, if the run has one."""
    writer: Writer = field(default_factory=Writer)
    buffers: Buffers = field(default_factory=Buffers)
    saved_step: int = 0
    """The last step of which a checkpoint was written or loaded; the same on all ranks."""
    _started: tuple[int, float] = (0, 0.0)
    """Step of the checkpoint that is being written, and how long training has waited for it."""
    _told: set[str] = field(default_factory=set)
    """Lines about files that cannot be deleted."""

    def reserve(self) -> None:
        """Take the memory for copies now: the first checkpoint then takes no longer than the others."""
        if self.state.comm.rank == 0:
            self.buffers.copy(contents(self.state))

    def save(self, *, wait: bool = False) -> None:
        """Save the present state on rank 0, without a change of it; every rank must call.

        With `wait` the checkpoint is complete on return; else a thread writes it, and the next call
        of this or `report_written` raises its error. Raises TrainingError if the state is not
        finite; the older checkpoints are then untouched.
        """
        began = time.perf_counter()
        activity.enter("writing a checkpoint")
        self.report_written(None)  # the copy that it writes is needed
        files = self._copy()
        if files is not None:
            self._start(files, began, urgent=wait)
            if wait:
                self.report_written(None)
        self.saved_step = self.state.progress.step
        self.cadence.saved(time.perf_counter() - began)

    def save_alone(self) -> None:
        """Save the present state of this rank, which has no batch-norm statistics, as the others cannot
        be reached. Raises TrainingError if it is not finite, ResourceError if the disk refuses."""
        began = time.perf_counter()
        activity.enter("writing a checkpoint")
        self.report_written(None)
        if what := not_finite(self.state):
            raise TrainingError(f"{what} is not finite after update {self.state.progress.step}")
        files = self._with_measures(self.buffers.copy(contents(self.state)))
        self._start(files, began, urgent=True)
        self.report_written(None)

    def _start(self, files: Tensors, began: float, *, urgent: bool) -> None:
        """Have the thread write `files`, copies of the present state."""
        if self.lock is not None:
            self.lock.require()
        self._require_directory()
        meta = metadata(self.state, self.labels, {**self.about, **self._results()})
        write = partial(write_checkpoint, files, meta, self.paths.checkpoints, self.keep)
        self.writer.start(write, urgent=urgent)
        self._started = self.state.progress.step, time.perf_counter() - began

    def report_written(self, timeout_s: float | None = 0) -> None:
        """Report a checkpoint that is complete, or becomes so within the time (None: for ever).

        Raises ResourceError on rank 0 if it could not be written.
        """
        saved = self.writer.take(timeout_s)
        if self.mirror is not None:
            if saved is not None:
                self.mirror.start()
            self._report_mirror(self.mirror)
        if saved is None:
            return
        step, stall_s = self._started
        written_s = self.writer.seconds
        if self.state.settings.device.type == "cpu":  # the thread takes a core from training
            self.cadence.cost_s += written_s
        seconds = stall_s + written_s
        self.sinks.write(Checkpoint(str(saved.path), seconds, saved.size, step, stall_s))
        for text in saved.kept:
            if text not in self._told:
                self._told.add(text)
                self.sinks.write(Note(f"warning: {text}"))

    def taken_s(self) -> float:
        """How long the last checkpoint took until it was complete; 0 before it."""
        return self._started[1] + self.writer.seconds

    def due(self) -> bool:
        """Whether this rank finds that it is time for a checkpoint, and the last one is written."""
        return self.cadence.due() and not self.writer.busy

    def finish(self) -> None:
        """At the end of a run, however it ends: let a checkpoint be completed. Raises nothing."""
        try:
            self.report_written(CLOSE_S)
        except Exception as error:  # noqa: BLE001 - the run ends, perhaps by another error
            self.sinks.write(Note(f"warning: {error}"))
        if self.mirror is not None:
            self.mirror.finish()
            self._report_mirror(self.mirror)

    def _report_mirror(self, mirror: Mirror) -> None:
        for text in mirror.notes():
            self.sinks.write(Note(f"warning: {text}"))

    def _results(self) -> dict[str, float | None]:
        """Of the present weights; None if they were not evaluated."""
        found = self.evaluation
        if found is None or found.step != self.state.progress.step:
            return {"top1": None, "loss": None}
        return {"top1": found.top1, "loss": found.loss}

    def _with_measures(self, files: Tensors) -> Tensors:
        """Also what was measured of an epoch that is not complete."""
        meter = self.state.weights
        return {**files, MEASURES_FILE: meter.tensors()} if meter and meter.updates else files

    def _require_directory(self) -> None:
        """Make the run directory anew if somebody has removed it. Raises ResourceError."""
        if self.paths.config.exists():
            return
        self.paths.create()
        self.describe()
        text = f"{self.paths.root} was removed, and is made anew"
        self.sinks.write(Note(f"warning: {text}: its reports and checkpoints so far are lost"))

    def _copy(self) -> Tensors | None:
        """A copy of the state, with batch-norm statistics pooled over ranks; None on ranks above 0.

        The ranks' own statistics are a file of their own, unless all are equal. Training goes on
        with them. So are the errors of PowerSGD.
        """
        state, comm = self.state, self.state.comm
        with pooled_statistics(state) as own:
            files = None
            if comm.rank == 0:
                files = self._with_measures(self.buffers.copy(contents(state)))
            known = files is not None and self.buffers.finite and state.reducer.memory is None
            check_state(state, self.paths, known=known)
            if own is not None:
                rows = comm.gather(own.cpu(), "statistics")
                pooled = torch.cat([buffer.flatten() for buffer in rank_buffers(state)]).cpu()
                if files is not None and not torch.equal(rows, pooled.expand_as(rows)):
                    files[BUFFERS_FILE] = {RANKS: rows}
        errors = gather_errors(state)
        if files is not None and errors:
            files[ERRORS_FILE] = errors
        return files
