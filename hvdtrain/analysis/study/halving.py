"""Successive halving: a grid of rates and batches is trained for an eighth of its epochs, and the better half
of the rates of each batch goes on to twice as many, until the last ones have all.

With many rates a batch costs 5/16 of what training all of them would.
Source: Jamieson and Talwalkar 2015, https://arxiv.org/abs/1502.07943.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.member_results import Result
from hvdtrain.analysis.study.study import Study
from hvdtrain.analysis.study.trainer import Outcome, Trainer
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError

PARTS = (8, 4, 2, 1)
OF_ALL_EPOCHS = ("cosine", "polynomial", "onecycle", "onecycle_fastai")
"""Schedules whose rate depends on the number of epochs: a run cannot be given more later."""


def require_extendable(cfg: Config) -> None:
    """Raise ConfigError if a run of `cfg` cannot go on with more epochs."""
    if cfg.lr.schedule in OF_ALL_EPOCHS:
        raise ConfigError(
            f"lr.schedule: {cfg.lr.schedule} depends on the number of epochs, which halving adds to: use "
            "constant or step, or --no-halving"
        )
    if len(cfg.phases) > 1:
        raise ConfigError(
            f"phases: {len(cfg.phases)}: halving needs a single one; or use --no-halving"
        )


def rungs(epochs: int) -> list[int]:
    """The numbers of epochs after which the better half is chosen, and the last one."""
    return sorted({math.ceil(epochs / part) for part in PARTS})


def share(rates: int, epochs: int) -> float:
    """Share of the epochs of all members that are trained, with so many rates for each batch."""
    left, before, trained = rates, 0, 0
    for now in rungs(epochs):
        trained += left * (now - before)
        left, before = math.ceil(left / 2), now
    return trained / (rates * epochs)


def at(member: Member, epochs: int) -> Member:
    """A member that trains no more than so many epochs at first."""
    more = f"phases.0.epochs={epochs}"
    return replace(member, epochs=epochs, settings=(*member.settings, more))


def survivors(members: Sequence[Member], results: Iterable[Result], epochs: int) -> list[Member]:
    """Those of the better half of the rates of each batch, by the mean over seeds of the lowest validation
    loss within `epochs`; a rate of which some member diverged or failed is out."""
    losses = {result.name: _lowest(result, epochs) for result in results}
    of_rate: dict[tuple[int, float], list[Member]] = {}
    for member in members:
        of_rate.setdefault((member.batch, member.rate), []).append(member)
    kept: set[tuple[int, float]] = set()
    for batch in {member.batch for member in members}:
        means = [
            (statistics.fmean(known), rate)
            for (own, rate), seeds in of_rate.items()
            if own == batch
            and len(known := [v for m in seeds if (v := losses.get(m.name)) is not None])
            == len(seeds)
        ]
        all_rates = sum(own == batch for own, _rate in of_rate)
        kept |= {(batch, rate) for _mean, rate in sorted(means)[: math.ceil(all_rates / 2)]}
    return [member for member in members if (member.batch, member.rate) in kept]


def _lowest(result: Result, epochs: int) -> float | None:
    curve = result.curves["validation loss"]
    values = [
        v for epoch, v in zip(curve.epochs, curve.values, strict=True) if epoch <= epochs + 1e-9
    ]
    return None if result.diverged or not values else min(values)


def train_by_halving(study: Study, trainer: Trainer) -> Outcome:
    """Train the members of a study rung by rung. What was chosen follows from the runs alone, so a study
    that was killed chooses alike."""
    whole, left = Outcome(), list(study.members)
    steps = rungs(study.cfg.phases[0].epochs)
    for epochs in steps:
        trainer.say(f"{len(left)} members to {epochs} epochs")
        part = trainer.train([at(member, epochs) for member in left])
        whole.finished += [name for name in part.finished if name not in whole.finished]
        whole.diverged |= part.diverged
        whole.failed |= part.failed
        whole.stopped, whole.signalled = part.stopped, part.signalled
        if part.stopped or epochs == steps[-1]:
            break
        left = survivors(left, study.results(trainer), epochs)
    return whole
