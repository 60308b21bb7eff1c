"""Which evaluation is still to be made, and when results of evaluations, or the time, end a run:
`train.patience`, `train.stop_at`."""

from __future__ import annotations

from hvdtrain.comm.agreement import any_rank
from hvdtrain.config.schema import Config
from hvdtrain.engine.progress import Evaluated, Progress
from hvdtrain.errors import ConfigError
from hvdtrain.report.events import evaluated
from hvdtrain.run.parts import Run
from hvdtrain.telemetry.reports import Note


def by_evaluations(cfg: Config) -> bool:
    """Whether the results of evaluations may end a run of `cfg`."""
    return cfg.train.patience is not None or bool(cfg.train.stop_at.targets)


def may_end_early(cfg: Config) -> bool:
    """Whether a run of `cfg` may end before its last epoch."""
    return by_evaluations(cfg) or cfg.train.stop_at.minutes is not None


def over(run: Run) -> bool:
    """Whether the run is to end before its last epoch; every rank must call it.

    Results and times are sums over ranks, and so the same on all; yet they agree on what follows from them.
    """
    if not may_end_early(run.cfg):
        return False
    progress = run.state.progress
    ends = any_rank(run.comm, ended(run.cfg, progress))
    if ends and progress.position.epoch < len(run.plan.epochs):
        run.sinks.write(Note(_why(run.cfg, progress)))
    return ends


def _why(cfg: Config, progress: Progress) -> str:
    found = progress.evaluated
    if reached(cfg, found):
        targets = cfg.train.stop_at.targets
        values = ", ".join(f"{name} {getattr(found, name):.4f}" for name in targets)
        return f"train.stop_at: the run ends: {values} in the last evaluation"
    if out_of_time(cfg, progress):
        spent = f"{progress.train_seconds / 60:.4g} of {cfg.train.stop_at.minutes:g} minutes"
        return f"train.stop_at.minutes: the run ends: {spent} of training are over"
    limit = cfg.train.patience
    times = "evaluation" if limit == 1 else f"{limit} evaluations"
    return (
        f"train.patience: the run ends: the validation loss was not below {found.best_loss:.4f}, that of "
        f"epoch {found.best_epoch:g}, in the last {times}"
    )


def owes_evaluation(run: Run) -> bool:
    """Whether the last attempt was stopped between an epoch and its evaluation."""
    done, every = run.state.progress.position.epoch, run.cfg.train.evaluate_every
    if run.state.progress.position.sample or done % every or not 0 < done < len(run.plan.epochs):
        return False
    step = run.state.progress.step
    if by_evaluations(run.cfg):  # the log may know of one that the state does not
        return run.state.progress.evaluated.step != step
    made = run.comm.rank == 0 and evaluated(run.paths.events, step)
    return not any_rank(run.comm, made)


def ended(cfg: Config, progress: Progress) -> bool:
    """Whether the last evaluation or the time ends the run here."""
    return used_up(cfg, progress.evaluated) or out_of_time(cfg, progress)


def out_of_time(cfg: Config, progress: Progress) -> bool:
    """Whether an epoch is complete, and with it the time of `train.stop_at.minutes` is over."""
    minutes = cfg.train.stop_at.minutes
    spent = minutes is not None and progress.train_seconds >= 60 * minutes
    return spent and progress.position.sample == 0


def used_up(cfg: Config, found: Evaluated) -> bool:
    """Whether the last `train.patience` evaluations were no better than one before, or the last one has what
    `train.stop_at` asks for."""
    patience = cfg.train.patience
    return (patience is not None and found.since_best >= patience) or reached(cfg, found)


def reached(cfg: Config, found: Evaluated) -> bool:
    """Whether the last evaluation has all that `train.stop_at` asks for."""
    asked = cfg.train.stop_at
    return bool(asked.targets) and all(
        (
            _at_least(found.top1, asked.top1),
            _at_least(found.top5, asked.top5),
            asked.loss is None or (found.loss is not None and found.loss <= asked.loss),
        )
    )


def _at_least(value: float | None, target: float | None) -> bool:
    return target is None or (value is not None and value >= target)


def improved(run: Run) -> bool:
    """Whether the present weights have the lowest validation loss, which `train.patience` keeps."""
    found = run.state.progress.evaluated
    lowest = found.best_loss is not None and found.best_step == run.state.progress.step
    return run.cfg.train.patience is not None and lowest


def require_validation(cfg: Config, images: int) -> None:
    """Raise ConfigError if a run is to end by evaluations that it cannot make. `images`: of the validation
    set."""
    if images or not by_evaluations(cfg):
        return
    targets, patience = cfg.train.stop_at.targets, cfg.train.patience
    what = f"patience: {patience}" if patience is not None else f"stop_at: {targets}"
    raise ConfigError(
        f"train.{what}, but there are no validation images: name them with data.val=DIR, or leave "
        f"train.{what.partition(':')[0]} out"
    )
