"""Rules of `recipe_check` about a schedule that does not fit the length of the run."""

from __future__ import annotations

from hvdtrain.config.schema import Config, LearningRate
from hvdtrain.plan.epochs import Plan


def warmup_longer_than_run(cfg: Config, plan: Plan) -> str | None:
    """A warmup that never ends."""
    total = len(plan.epochs)
    if not scheduled(cfg) or cfg.lr.warmup == "none" or cfg.lr.warmup_epochs < total:
        return None
    return f"the warmup of {cfg.lr.warmup_epochs:g} epochs takes the whole run of {total}"


def turns_beyond_end(cfg: Config, plan: Plan) -> str | None:
    """Milestones or points that the run does not reach, or a cycle that it does not finish."""
    total, lr = len(plan.epochs), cfg.lr
    if not scheduled(cfg):
        return None
    late = {
        "step": [m for m in lr.milestones if m >= total],
        "piecewise": [epoch for epoch, _ in lr.points if epoch > total],
    }.get(lr.schedule, [])
    if late:
        name = "milestones" if lr.schedule == "step" else "points"
        return f"{name} {late} lie beyond the last epoch, {total}"
    if lr.schedule == "cyclical" and lr.cycle_epochs and total % lr.cycle_epochs:
        return (
            f"the run ends after {total / lr.cycle_epochs:g} cycles: the rate is lowest, and the "
            "result best, at the end of a whole one (Smith 2015, arXiv 1506.01186, 3.2)"
        )
    return None


def rate_of_zero(_: Config, plan: Plan) -> str | None:
    """Epochs in which no weight changes, as more of them were asked for than the schedule is for."""
    idle = [epoch.index for epoch in plan.epochs if epoch.lr(0) == epoch.lr(epoch.steps - 1) == 0]
    if not idle:
        return None
    return (
        f"the learning rate is 0 in {len(idle)} of {len(plan.epochs)} epochs, from epoch {idle[0]} on: they "
        "change no weight: move lr.points, or train fewer epochs"
    )


def schedule_unused(cfg: Config, _: Plan) -> str | None:
    """A schedule that no phase uses."""
    if scheduled(cfg) or cfg.lr.schedule == LearningRate().schedule or cfg.lr.cycle_momentum:
        return None
    return f"lr.schedule {cfg.lr.schedule} has no effect: every phase has its own rate"


def scheduled(cfg: Config) -> bool:
    """Whether any phase uses `lr.schedule`."""
    return any(phase.lr is None for phase in cfg.phases)
