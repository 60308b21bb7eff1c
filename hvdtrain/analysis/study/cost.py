"""How long a study takes: from members that have ended, else from a few measured steps."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain import activity
from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.trainer import Trainer
from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Plan, make_plan
from hvdtrain.report.events import number, read_mapping

WARM_UP, TIMED = 3, 10
"""Steps of a timing; the median of those after the first counts."""


@dataclass(frozen=True)
class Cost:
    """Of one member."""

    member: Member
    updates: int
    """Most: a run that `train.patience` ends makes fewer."""
    seconds: float | None
    """Of training and evaluation; None if it is not known."""
    finished: bool


def member_config(cfg: Config, member: Member, *, ranks: int | None = None) -> Config:
    """The config of a member of a study of `cfg`; with `ranks` as one of that number would have it."""
    more = list(member.settings)
    if ranks is not None:
        share = member.batch // (ranks * cfg.train.accumulate)
        more += [f"phases.{i}.batch_per_worker={share}" for i in range(len(cfg.phases))]
    return parse_config(json.dumps(cfg.model_dump()), member.name, more)


def plan_of(cfg: Config, member: Member, images: int) -> Plan:
    """The plan of a member. Raises ConfigError if it cannot be trained."""
    return make_plan(member_config(cfg, member), member.ranks, images)


def costs(cfg: Config, found: Sequence[Member], images: int, trainer: Trainer) -> list[Cost]:
    """Of all members; each batch is timed once unless a member of it has ended."""
    known = _known(found, trainer)
    table = []
    for member in found:
        plan, done = plan_of(cfg, member, images), trainer.finished(member)
        key = (member.batch, member.ranks)
        if key not in known:
            known[key] = _timed(cfg, member)
        seconds = known[key] * len(plan.epochs) if not done else 0.0
        table.append(Cost(member, plan.total_steps, seconds, done))
    return table


def _known(found: Sequence[Member], trainer: Trainer) -> dict[tuple[int, int], float]:
    """Seconds per epoch, evaluation included, of members that have ended, by batch and ranks."""
    seconds: dict[tuple[int, int], list[float]] = {}
    for member in filter(trainer.finished, found):
        summary = read_mapping(RunPaths(trainer.folder.run(member.name)).summary)
        wall, samples = number(summary, "run_wall_seconds"), number(summary, "samples")
        images = _images_of(trainer.folder, member)
        if wall and samples and images:
            seconds.setdefault((member.batch, member.ranks), []).append(wall * images / samples)
    return {key: statistics.fmean(values) for key, values in seconds.items()}


def _images_of(folder: Folder, member: Member) -> float | None:
    """Training images of a member that has ended."""
    for path in list_checkpoints(RunPaths(folder.run(member.name)).checkpoints)[:1]:
        return number(read_meta(path).get("labels", {}), "train_images")
    return None


def _timed(cfg: Config, member: Member) -> float:
    """Seconds per epoch, by a few steps and batches of an evaluation on one process: with several ranks,
    those of one rank's share, without the exchange of gradients."""
    from hvdtrain.comm.ranks import Solo
    from hvdtrain.engine.build import set_up
    from hvdtrain.engine.evaluate import evaluate
    from hvdtrain.engine.step import train_step

    activity.enter(f"timing batch {member.batch}")
    with set_up(member_config(cfg, member), Solo()) as parts:
        epoch, laps = parts.plan.epochs[0], []
        batches = parts.loaders.train(epoch)
        began = time.perf_counter()
        for number_, (i, batch) in enumerate(batches, 1):
            train_step(parts.state, batch, epoch.lr(i), epoch.momentum(i))
            laps.append(time.perf_counter() - began)
            began = time.perf_counter()
            if number_ >= WARM_UP + TIMED:
                break
        steps = statistics.median(laps[min(WARM_UP, len(laps) - 1) :]) * epoch.steps / member.ranks
        began = time.perf_counter()
        evaluate(parts.state, parts.loaders.val(epoch), parts.loaders.num_val)
        return steps + (time.perf_counter() - began) / member.ranks


def hours_left(table: Sequence[Cost], jobs: int) -> float:
    """For what is not finished, if every member trains all its epochs."""
    return sum(cost.seconds or 0.0 for cost in table if not cost.finished) / jobs / 3600


class TimeLeft:
    """Time until all members have ended, by those that have: of the same batch, else of all."""

    def __init__(self, folder: Folder, found: Sequence[Member], jobs: int) -> None:
        self._folder, self._members, self._jobs = folder, found, jobs
        self._seconds: dict[str, float] = {}

    def estimate(self, running: dict[str, float], waiting: Sequence[Member]) -> float | None:
        """Seconds; None before a member has ended. `running`: seconds so far by name."""
        for member in self._members:
            if member.name not in self._seconds:
                summary = read_mapping(RunPaths(self._folder.run(member.name)).summary)
                if (seconds := number(summary, "run_wall_seconds")) is not None:
                    self._seconds[member.name] = seconds
        if not self._seconds:
            return None
        by_name = {member.name: member for member in self._members}
        left = sum(self._of(member) for member in waiting)
        left += sum(max(0.0, self._of(by_name[name]) - s) for name, s in running.items())
        return left / self._jobs

    def _of(self, member: Member) -> float:
        alike = [
            self._seconds[each.name]
            for each in self._members
            if each.name in self._seconds and each.batch == member.batch
        ]
        return statistics.fmean(alike or self._seconds.values())
