"""What `hvdtrain study … --dry-run` prints."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from hvdtrain.streams import say

if TYPE_CHECKING:
    from hvdtrain.analysis.study.cost import Cost
    from hvdtrain.analysis.study.study import Study
    from hvdtrain.analysis.study.surfaces import Surfaces


def costs_text(study: Study, jobs: int, surfaces: Surfaces | None) -> str:
    """The members with their updates and hours, and the hours of the measurements around their weights."""
    from hvdtrain.analysis.study.cost import hours_left
    from hvdtrain.analysis.study.halving import share

    table = study.costs(study.trainer(jobs, say))
    lines = ["member                      batch      rate  ranks  updates     hours"]
    for cost in table:
        member = cost.member
        hours = "done" if cost.finished else f"{(cost.seconds or 0) / 3600:.2f}"
        lines.append(
            f"{member.name:<26}  {member.batch:>5}  {member.rate:>8g}  {member.ranks:>5}  "
            f"{cost.updates:>7,}  {hours:>8}"
        )
    left, at_once = hours_left(table, jobs), f", {jobs} at once" if jobs > 1 else ""
    if study.asked.halving:
        part = share(len(study.asked.rates), sum(phase.epochs for phase in study.cfg.phases))
        left, at_once = part * left, f"{at_once}, {part:.0%} of the whole grid by halving"
    patience = study.cfg.train.patience
    most = "" if patience is None else ", at most: train.patience ends members earlier"
    lines.append(
        f"{len(table)} members, {left:.2f} hours of training and evaluation{at_once}{most}"
    )
    if surfaces is not None and surfaces.measures:
        lines.append(_surfaces_text(study, table, jobs, surfaces))
    return "\n".join(lines)


def _surfaces_text(study: Study, table: list[Cost], jobs: int, surfaces: Surfaces) -> str:
    """By the time that an image takes in training, of which a forward pass is about a third."""
    from hvdtrain.analysis.study.surfaces import evaluations

    epochs = sum(phase.epochs for phase in study.cfg.phases)
    seconds = [cost.seconds / epochs / study.images for cost in table if cost.seconds]
    if not seconds:
        return f"and {', '.join(surfaces.measures)} of what is not measured yet"
    images = min(surfaces.images, study.images)
    passes = evaluations(surfaces.measures, study.members)
    hours = passes * images * statistics.median(seconds) / 3 / jobs / 3600
    return f"and about {hours:.2f} hours for {', '.join(surfaces.measures)} on {images:,} images"
