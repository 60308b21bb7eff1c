"""Checkpoints of a sound state, called from the loop; every rank must call."""

from __future__ import annotations

import time

from hvdtrain import activity
from hvdtrain.comm.agreement import Stops
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.parts import Run
from hvdtrain.run.patience import improved
from hvdtrain.run.rollback import keep_sound
from hvdtrain.telemetry.meter import Meter


def save(run: Run, *, wait: bool = False) -> None:
    """Save a state that is the same on all ranks and finite. See `Snapshots`.

    Raises TrainingError, DivergenceError; the older checkpoints are then untouched.
    """
    keep_sound(run)
    run.comparison.compare()
    run.snapshots.save(wait=wait)


def save_after(run: Run, epochs: int, stops: Stops) -> None:
    """Save after so many epochs, if a checkpoint is due."""
    due = run.snapshots.cadence.after(run.state.progress.step) or stops.saving or improved(run)
    if epochs % run.cfg.checkpoint.every_epochs == 0 or due:
        save(run)
        stops.saved()


def save_within(run: Run, epoch: Epoch, i: int, stops: Stops, meter: Meter) -> None:
    """Save after step `i` of an epoch; this does not count as training time."""
    began = time.perf_counter()
    save(run)
    stops.saved()
    activity.enter(f"epoch {epoch.index + 1}", epoch.steps)
    activity.step(i + 1)
    meter.leave_out(time.perf_counter() - began)
