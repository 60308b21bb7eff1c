"""The training loop."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hvdtrain import activity
from hvdtrain.calling import make_callable
from hvdtrain.comm.agreement import Stops, any_rank, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import free_parts, whiten
from hvdtrain.engine.compiling import compile_for
from hvdtrain.engine.step import train_step
from hvdtrain.errors import Preempted, TrainingError
from hvdtrain.launch.job import note_training
from hvdtrain.launch.note_folder import remove_session
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.attempts import start_attempt
from hvdtrain.run.efficiency import Efficiency, trained_parts
from hvdtrain.run.emergency import rescued
from hvdtrain.run.guard.numbers import check_loss, finite
from hvdtrain.run.guard.watchdog import watching
from hvdtrain.run.patience import over, owes_evaluation
from hvdtrain.run.prepare import Run, prepare
from hvdtrain.run.rollback import roll_back
from hvdtrain.run.saving import save, save_after, save_within
from hvdtrain.run.summary import write_page, write_summary
from hvdtrain.run.validation import report_evaluation
from hvdtrain.run.weights import report_weights
from hvdtrain.signals import HeardStops
from hvdtrain.telemetry.discovery import withdraw
from hvdtrain.telemetry.hardware import LinkUse
from hvdtrain.telemetry.meter import Interval, Meter
from hvdtrain.telemetry.reports import Note, Scaling, Stop, Train
from pipelines.loader import Batch

make_callable(__name__)


def train(
    cfg: Config,
    comm: Comm,
    *,
    resume: str = "never",
    run_dir: Path | None = None,
    accept_changes: bool = False,
    batch_ranks: int | None = None,
) -> dict[str, Any]:
    """Train `cfg` on all ranks of `comm`; returns the contents of `summary.json`.

    `resume`: never, auto (the newest unfinished run of this name and these settings), or a run
    directory.
    `accept_changes`: resume also if settings or images are others than when the run began.
    `batch_ranks`: a new run takes the global batch that `cfg` has on so many ranks; a resumed one keeps
    its own by itself.
    Raises Preempted, after a checkpoint, when any rank has received SIGTERM, SIGUSR1, SIGINT
    or SIGHUP; in a thread that is not the main one no signal is noticed. Ends the process with the
    exit code of StallError if it makes no progress for `train.stall_timeout`.
    """
    began = time.perf_counter()
    with watching(cfg.train.stall_timeout, comm.rank):
        prepared = prepare(cfg, comm, resume, run_dir, accept_changes, batch_ranks)
        # Signals last: one that is repeated while the run closes must not change how it ends.
        with HeardStops() as signals, contextlib.closing(prepared) as run:
            if comm.rank == 0:
                note_training(os.environ)
            return _train(run, signals, began)


def _train(run: Run, signals: HeardStops, began: float) -> dict[str, Any]:
    """Train the rest of a run; `began`: when its set-up did, by `time.perf_counter`."""
    earlier = start_attempt(run, time.perf_counter() - began)
    efficiency, stops = Efficiency(run), _stops(run, signals)
    last = len(run.plan.epochs)
    if owes_evaluation(run):
        report_evaluation(run, run.plan.epochs[run.state.progress.position.epoch - 1], stops)
    left = run.plan.epochs_from(run.state.progress.position)
    epochs = [] if over(run) else list(left)
    for epoch, following in zip_longest(epochs, epochs[1:]):
        train_epoch(run, epoch, following, efficiency, stops)
        done = epoch.index + 1
        if done % run.cfg.train.evaluate_every == 0 and done < last:
            report_evaluation(run, epoch, stops)
        if done < last and stops.settle():
            raise _preempted(run, stops)
        if over(run):
            break
        if done < last:
            save_after(run, done, stops)
    run.skips.end_run(run.state)
    evaluation = report_evaluation(
        run, run.plan.epochs[run.state.progress.position.epoch - 1], stops
    )
    if stops.agreed and evaluation is None and run.loaders.num_val:
        raise _preempted(run, stops)
    save(run, wait=True)
    wall_s = time.perf_counter() - began
    end = write_summary(run, evaluation, efficiency.overall(), wall_s, earlier)
    withdraw(run.cfg.metrics, run.comm, run.paths)
    write_page(run)
    return end.values()


def train_epoch(
    run: Run, epoch: Epoch, following: Epoch | None, efficiency: Efficiency, stops: Stops
) -> None:
    """Train the rest of one epoch. A stop before its end raises Preempted, after a checkpoint.

    The first batches of the `following` epoch are decoded while the last ones of `epoch` are used.
    """
    state, loaders, sinks = run.state, run.loaders, run.sinks
    meter = Meter(state.settings.device, LinkUse() if run.comm.local_rank == 0 else None)
    run.bad.start_epoch()
    free_parts(state, run.cfg, epoch)
    meter.start(loaders.data_wait_s)
    stops.enter()
    if run.begun:  # decoded while the last epoch was trained
        activity.enter(f"epoch {epoch.index + 1}", epoch.steps)
    else:
        activity.enter("decoding the first images")
    report = partial(_measure, run, epoch, meter, stops, efficiency)
    with rescued(run, epoch, stops, meter, report) as rescue:
        for i, batch in rescue.batches(loaders.train(epoch, following)):
            if i == 0:
                _enter(run, epoch, batch, efficiency, meter)
            stopping = stops.check()
            saving = stops.saving or run.snapshots.cadence.after(state.progress.step + 1)
            due = stopping or saving or epoch.should_log(i, run.cfg.train.log_every)
            lr, momentum, done = epoch.lr(i), epoch.momentum(i), epoch.done_after(i)
            sums = train_step(state, batch, lr, momentum, norm=due, done=done)
            run.bad.add(batch.bad, sinks)
            state.progress = state.progress.at(epoch.position_after(i))
            run.trail.add(state.progress.step, batch.indices, sums)
            step_s = meter.add(sums, loaders.data_wait_s)
            activity.step(i + 1)
            sinks.observe_step(step_s, len(batch.labels), loaders.data_wait_s, state.reducer)
            if due:
                report(i)
                if run.other_work and (crowded := run.other_work.note()):
                    sinks.write(Note(f"warning: {crowded}"))
                run.snapshots.report_written()
                if state.progress.position.epoch == epoch.index:
                    if stops.agreed:
                        raise _preempted(run, stops)
                    if saving:
                        save_within(run, epoch, i, stops, meter)
            run.comparison.after_step()
    run.skips.end_epoch(state, epoch.steps)
    report_weights(run)


def _enter(run: Run, epoch: Epoch, batch: Batch, efficiency: Efficiency, meter: Meter) -> None:
    """Prepare an epoch with its first batch; this does not count as training time.

    The wait for the first batch of an attempt does not count either.
    """
    began = time.perf_counter()
    whiten(run.state, run.cfg, batch.images)
    _compile(run, epoch, batch)
    efficiency.enter(epoch, batch)
    if run.begun:
        meter.leave_out(time.perf_counter() - began)
    else:
        meter.start(run.loaders.data_wait_s)
    run.begun = True
    activity.enter(f"epoch {epoch.index + 1}", epoch.steps)


def _compile(run: Run, epoch: Epoch, batch: Batch) -> None:
    """Compile the network for the images of an epoch, if it is to be."""
    if run.state.compiled is None:
        return
    activity.enter(f"compiling the network for {epoch.image_size} px")
    with together(run.comm):
        compiled = compile_for(run.state, batch, trained_parts(run.cfg, epoch))
    if compiled is not None:
        parts = "1 part" if compiled.graphs == 1 else f"{compiled.graphs} parts"
        what = f"{parts} compiled for {len(batch.labels)} images"
        took = f"{compiled.seconds:.1f} s"
        run.sinks.write(Note(f"train.compile: {what} of {epoch.image_size} px in {took}"))


def _measure(
    run: Run, epoch: Epoch, meter: Meter, stops: Stops, efficiency: Efficiency, i: int
) -> None:
    """Measure the steps of all ranks up to step `i` of `epoch`, and report them.

    Raises TrainingError like `_report`, DataError if too many images are bad; on all ranks alike.
    """
    state, loaders, sinks = run.state, run.loaders, run.sinks
    run.bad.add_changed(loaders.take_changed())
    run.bad.add_retried(loaders.take_retried(), sinks)
    waiting, bad = state.reducer.clock.waiting, run.bad.counts()
    more = (state.noise.rows(), run.spikes.losses(run.trail))
    interval = meter.drain(run.comm, waiting, stops.requested, bad, *more)
    stops.agreed |= interval.stopping
    noise_scale = state.noise.take(interval.more[0])
    _report(run, epoch, i, interval, noise_scale, efficiency.add(interval))
    sinks.observe_interval(interval, efficiency.lost)
    run.comparison.pace(interval.measured.step_seconds)
    loaders.mask(run.bad.settle(interval.bad, epoch.num_samples, sinks))


def _report(
    run: Run,
    epoch: Epoch,
    i: int,
    interval: Interval,
    noise_scale: float | None,
    scaling: Scaling,
) -> None:
    """Report the interval that ends with step `i` of `epoch`; if its loss is no good, roll back.

    Raises TrainingError if that is not possible, or too many updates were skipped.
    """
    state, epochs, measured = run.state, len(run.plan.epochs), interval.measured
    lr = epoch.lr(i)
    state.progress = state.progress.after_report(round(measured.samples), measured.seconds)
    done = epoch.index + epoch.samples_after(i) / epoch.num_samples
    run.skips.add(state, interval.step_s.shape[1])
    at = f"epoch {done:.2f}, step {state.progress.step}, learning rate {lr:.4g}"
    try:
        check_loss(measured.loss, state, run.skips, at)
        run.spikes.check(interval.more[1], epoch, state.progress.step)
    except TrainingError as fault:
        roll_back(run, fault)
        return
    run.trail.clear(keep=run.spikes.row)
    speed = measured.images_per_second
    run.sinks.write(
        Train(
            step=state.progress.step,
            epoch=done,
            epochs=epochs,
            progress=done / epochs,
            eta_s=(epochs - done) * epoch.num_samples / speed if speed else None,
            phase=epoch.phase_index,
            image_size=epoch.image_size,
            batch_per_worker=epoch.batch_per_worker,
            global_batch_size=epoch.global_batch_size,
            total_samples=state.progress.samples,
            lr=lr,
            momentum=epoch.momentum(i),
            gradient_norm=finite(state.gradient_norm),
            skipped_updates=finite(state.skipped),
            loss_scale=state.scaler.get_scale() if state.scaler.is_enabled() else None,
            measured=measured,
            gradient_noise_scale=noise_scale,
            scaling=scaling,
        )
    )


def _stops(run: Run, signals: HeardStops) -> Stops:
    asked, say = run.notices.cause, run.sinks.say
    return Stops(signals, run.comm, save_due=run.snapshots.due, say=say, asked=asked)


def _preempted(run: Run, stops: Stops) -> Preempted:
    """Save a checkpoint, and only then report the stop."""
    stops.tell()
    save(run, wait=True)
    any_rank(run.comm, False)  # if a rank ended sooner, the launcher would end rank 0 in its write
    withdraw(run.cfg.metrics, run.comm, run.paths)  # the ranks did not crash: no alert
    run.sinks.write(Stop("signal", run.state.progress.step))
    if stops.orphaned and run.comm.local_rank == 0:
        remove_session(os.environ)
    at = run.state.progress.position
    return Preempted(
        f"stopped {stops.cause} at epoch {at.epoch}, image {at.sample:,}; a checkpoint is in "
        f"{run.paths.checkpoints}; continue with --resume {run.paths.root}"
    )
