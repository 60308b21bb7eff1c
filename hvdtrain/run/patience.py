"""Which evaluation is still to be made, and when the validation loss ends a run: `train.patience`."""

from __future__ import annotations

from hvdtrain.comm.agreement import any_rank
from hvdtrain.config.schema import Config
from hvdtrain.engine.progress import Evaluated
from hvdtrain.errors import ConfigError
from hvdtrain.report.events import evaluated
from hvdtrain.run.parts import Run
from hvdtrain.telemetry.reports import Note


def out_of_patience(run: Run) -> bool:
    """Whether the run is to end before its last epoch; every rank must call it.

    The loss is a sum over ranks, and so the same on all; yet they agree on what follows from it.
    """
    limit = run.cfg.train.patience
    if limit is None:
        return False
    over = any_rank(run.comm, used_up(run.cfg, run.state.progress.evaluated))
    if over and run.state.progress.position.epoch < len(run.plan.epochs):
        found = run.state.progress.evaluated
        times = "evaluation" if limit == 1 else f"{limit} evaluations"
        run.sinks.write(
            Note(
                f"train.patience: the run ends: the validation loss was not below {found.best_loss:.4f}, that "
                f"of epoch {found.best_epoch:g}, in the last {times}"
            )
        )
    return over


def owes_evaluation(run: Run) -> bool:
    """Whether the last attempt was stopped between an epoch and its evaluation."""
    done, every = run.state.progress.position.epoch, run.cfg.train.evaluate_every
    if run.state.progress.position.sample or done % every or not 0 < done < len(run.plan.epochs):
        return False
    step = run.state.progress.step
    if run.cfg.train.patience is not None:  # the log may know of one that the state does not
        return run.state.progress.evaluated.step != step
    made = run.comm.rank == 0 and evaluated(run.paths.events, step)
    return not any_rank(run.comm, made)


def used_up(cfg: Config, found: Evaluated) -> bool:
    """Whether the last `train.patience` evaluations were no better than one before."""
    return cfg.train.patience is not None and found.since_best >= cfg.train.patience


def improved(run: Run) -> bool:
    """Whether the present weights have the lowest validation loss, which `train.patience` keeps."""
    found = run.state.progress.evaluated
    lowest = found.best_loss is not None and found.best_step == run.state.progress.step
    return run.cfg.train.patience is not None and lowest


def require_validation(cfg: Config, images: int) -> None:
    """Raise ConfigError if patience has nothing to go by. `images`: of the validation set."""
    if cfg.train.patience is not None and not images:
        raise ConfigError(
            f"train.patience: {cfg.train.patience}, but there are no validation images: name them with "
            "data.val=DIR, or leave train.patience out"
        )
