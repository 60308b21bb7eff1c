"""Going back to the last checkpoint when the loss is not finite or jumps, while the data goes on."""

from __future__ import annotations

from hvdtrain.comm.agreement import any_rank
from hvdtrain.errors import TrainingError
from hvdtrain.run.guard.numbers import REMEDY, not_finite
from hvdtrain.run.guard.spikes import LossSpike
from hvdtrain.run.parts import Run
from hvdtrain.run.restore import checkpoints_before, restore
from hvdtrain.telemetry.reports import Note


def roll_back(run: Run, fault: TrainingError) -> None:
    """Give all ranks the weights and optimizer state of the newest intact checkpoint; position, learning
    rate and counts stay, so the images that led to the fault are not trained again in this epoch.

    Every rank must call it. After a jump of the loss, only checkpoints count with which a step was
    fine. Raises `fault`, with the images at fault, if `train.rollbacks` is used up or there is no
    checkpoint.
    """
    run.snapshots.report_written(None)  # a checkpoint that is still being written is the newest
    name, before = run.loaders.sources["train"].name, None
    if isinstance(fault, LossSpike):
        before = fault.step - 1  # the update before may have caused it
        text = f"{fault}{run.trail.images_of(fault.step, run.comm, name)}"
    else:
        text = f"{fault}{run.trail.first_fault(run.comm, name)}"
    run.trail.clear()
    run.spikes.forget()
    most, there = run.cfg.train.rollbacks, run.comm.rank == 0
    there = there and bool(checkpoints_before(run.paths, before))
    if run.rollbacks >= most or not any_rank(run.comm, there):
        after = f", after {run.rollbacks} rollbacks" if run.rollbacks else ""
        raise TrainingError(f"{text}{after}") from None
    run.rollbacks += 1
    progress = run.state.progress
    restore(run, must=True, verb="went back to", before=before)
    run.state.progress = progress
    run.sinks.write(
        Note(
            f"warning: {text}; rollback {run.rollbacks} of {most}: these weights go on with the images "
            f"after step {progress.step}"
        )
    )


def keep_sound(run: Run) -> None:
    """With `train.rollbacks`, roll back before an evaluation or a checkpoint if the last update spoiled the
    state of some rank; every rank must call it. Raises TrainingError like `roll_back`."""
    if not run.cfg.train.rollbacks:
        return
    what = not_finite(run.state)
    if any_rank(run.comm, what is not None):
        step = run.state.progress.step
        roll_back(
            run, TrainingError(f"{what or 'a tensor'} is not finite after update {step}: {REMEDY}")
        )
