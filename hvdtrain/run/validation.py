"""The evaluations of a training run."""

from __future__ import annotations

from collections.abc import Iterator

from hvdtrain import activity
from hvdtrain.comm.agreement import Stops, any_rank, fault_text, shared_fault
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.errors import HvdtrainError
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.emergency import saved_by_all
from hvdtrain.run.guard.numbers import check_evaluation
from hvdtrain.run.parts import Run
from hvdtrain.run.patience import may_end_early
from hvdtrain.run.rollback import keep_sound
from hvdtrain.telemetry.reports import Eval
from pipelines.loader import Batch


class _Stopped(Exception):
    """All ranks stop before the end of an evaluation."""


def report_evaluation(run: Run, epoch: Epoch, stops: Stops) -> Eval | None:
    """Evaluate on all ranks and report; None without a validation set, or if the run is to stop.

    Raises TrainingError if the loss is not finite, and on all ranks, after a checkpoint, the error of a
    rank that gets no images.
    """
    images = run.loaders.num_val
    if not images or stops.agreed:
        return None
    made = run.snapshots.evaluation
    if may_end_early(run.cfg) and made and made.step == run.state.progress.step:
        return made  # the one that has ended the run
    keep_sound(run)
    run.comparison.compare()
    stops.enter()
    activity.enter("evaluating", images, "images")
    batches = _Batches(run, epoch, stops)
    try:
        result = evaluate(run.state, batches.until_stopped(), images)
    except _Stopped:
        if stops.failed:
            raise batches.saved() from None
        return None
    views = run.cfg.train.val_views
    step = run.state.progress.step
    evaluation = Eval(float(epoch.index + 1), step, images, **result, views=views)
    run.sinks.write(evaluation)
    run.snapshots.evaluation = evaluation
    run.snapshots.report_written(None)  # an error names the last one
    check_evaluation(evaluation, run.paths)
    run.state.progress = run.state.progress.after_evaluation(
        evaluation.epoch, evaluation.loss, evaluation.top1, evaluation.top5
    )
    return evaluation


class _Batches:
    """The batches of this rank, of which every rank has the same number."""

    def __init__(self, run: Run, epoch: Epoch, stops: Stops) -> None:
        self._run, self._epoch, self._stops = run, epoch, stops
        self._fault: HvdtrainError | None = None

    def until_stopped(self) -> Iterator[Batch]:
        """Yield them; raises _Stopped on all ranks alike. A rank without images goes on agreeing."""
        taken = 0
        try:
            for batch in self._run.loaders.val(self._epoch):
                self._agree()
                yield batch
                taken += 1
        except HvdtrainError as error:
            self._fault, self._stops.failing = error, True
            for _ in range(taken, self._run.loaders.val_batches(self._epoch)):
                self._agree()
        self._stops.failed |= any_rank(self._run.comm, self._stops.failing)
        if self._stops.failed:
            raise _Stopped

    def _agree(self) -> None:
        if self._stops.check():
            raise _Stopped

    def saved(self) -> HvdtrainError:
        """Save on all ranks, between two updates; the error to raise."""
        texts = self._run.comm.gather_text(fault_text(self._fault))
        fault = shared_fault(texts, self._run.comm.size)
        assert fault is not None
        return saved_by_all(self._run, fault, lambda: None)
