"""What a study was asked for, kept in `study.json`, and its members: runs that differ in a few settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hvdtrain.analysis.study.folder import Folder
from hvdtrain.config.kinds import plain, settings
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.schedules import lr_scale

Kind = Literal["batch-size", "lr-batch", "parallel"]
Scaling = Literal["none", "linear", "sqrt"]
GROWING = ("batches", "scalings", "seeds", "rates", "ranks")
"""What may be added to a study that has begun."""


@dataclass(frozen=True)
class Asked:
    """What a study was asked for."""

    kind: Kind
    batches: tuple[int, ...]
    """Global batch sizes; rates are those of the first one, scaled."""
    scalings: tuple[str, ...] = ("none",)
    seeds: int = 1
    rates: tuple[float, ...] = ()
    """Of `lr-batch`, at every batch."""
    ranks: tuple[int, ...] = (1,)
    threads: int = 1
    """Compute threads of a rank: other numbers give other last digits."""
    halving: bool = False
    """Of `lr-batch`: only the better half of the rates is trained further, again and again."""


@dataclass(frozen=True)
class Member:
    """One run of a study."""

    name: str
    batch: int
    """Global."""
    scaling: str
    rate: float
    """Highest learning rate."""
    seed: int
    ranks: int
    settings: tuple[str, ...]
    """What differs from the study's config."""
    epochs: int | None = None
    """It is complete after so many, though it may be given more later; None: those of the config."""

    @property
    def group(self) -> tuple[int, str, float, int]:
        """What members have in common that differ in their seeds only."""
        return self.batch, self.scaling, self.rate, self.ranks


def members(asked: Asked, cfg: Config) -> list[Member]:
    """All runs, in the order in which they are trained: seed after seed, so that an unfinished study has
    a whole answer. Raises ConfigError if they cannot be made of `cfg`."""
    found = [_member(asked, cfg, *of) for of in _combinations(asked, cfg)]
    return [*{member.name: member for member in found}.values()]


def _combinations(asked: Asked, cfg: Config) -> Iterator[tuple[int, int, str, float, int]]:
    """Seed, batch, scaling, rate and ranks."""
    first = cfg.lr.base * lr_scale(cfg.lr, asked.batches[0])
    for seed in range(cfg.seed, cfg.seed + asked.seeds):
        for ranks in asked.ranks:
            for batch in asked.batches:
                if asked.kind == "lr-batch":
                    for rate in asked.rates:
                        yield seed, batch, "none", rate, ranks
                    continue
                for scaling in asked.scalings:
                    yield (
                        seed,
                        batch,
                        scaling,
                        scaled(first, scaling, batch / asked.batches[0]),
                        ranks,
                    )


def scaled(rate: float, scaling: str, factor: float) -> float:
    """The rate for a batch that is `factor` times as large."""
    return rate * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[scaling]


def _member(
    asked: Asked, cfg: Config, seed: int, batch: int, scaling: str, rate: float, ranks: int
) -> Member:
    if batch == asked.batches[0] and scaling in asked.scalings:
        scaling = asked.scalings[0]  # there they are the same run
    share, rest = divmod(batch, ranks * cfg.train.accumulate)
    if rest or not share:
        raise ConfigError(
            f"--batches: {batch} images cannot be shared by {ranks} ranks × train.accumulate "
            f"{cfg.train.accumulate}: use multiples of {ranks * cfg.train.accumulate}"
        )
    how = f"lr{rate:g}".replace("+", "") if asked.kind == "lr-batch" else scaling
    of_ranks = f"-r{ranks}" if asked.kind == "parallel" else ""
    name = f"b{batch}-{how}{of_ranks}-s{seed}"
    own = [
        *(f"name={name}", f"seed={seed}", f"lr.base={rate!r}", "lr.scaling=none"),
        *(f"phases.{i}.batch_per_worker={share}" for i in range(len(cfg.phases))),
        *("metrics.weights=true", f"train.compute_threads={asked.threads}"),
    ]
    return Member(name, batch, scaling, rate, seed, ranks, tuple(own))


def require_fit(cfg: Config) -> None:
    """Raise ConfigError if a study of the batch size cannot be made of `cfg`."""
    sizes = {phase.batch_per_worker for phase in cfg.phases}
    if len(sizes) > 1:
        raise ConfigError(
            f"phases: batches of {', '.join(map(str, sorted(sizes)))}: a study needs phases of one batch"
        )
    for number, phase in enumerate(cfg.phases):
        if phase.lr is not None:
            raise ConfigError(f"phases.{number}.lr: a study sets lr.base: leave it out")
    if cfg.data.train is None or cfg.data.val is None:
        missing = "train" if cfg.data.train is None else "val"
        raise ConfigError(f"data.{missing}: not set: a study needs it: data.{missing}=DIR")


def begun(folder: Folder, asked: Asked, cfg: Config) -> Asked:
    """What the study of `folder` goes on as; it may be new. Batches, scalings, seeds, rates and ranks can
    be added. Raises ConfigError with every other difference."""
    before = folder.read()
    if not before:
        return asked
    found = before["asked"]
    wanted = replace(asked, threads=int(found["threads"]))
    lines = []
    for key, value in asdict(wanted).items():
        had = tuple(found[key]) if isinstance(found[key], list) else found[key]
        if isinstance(value, tuple):
            lost = [each for each in had if each not in value]
            if lost or (key in ("batches", "scalings") and value[0] != had[0]):
                lines.append(f"{key} {plain(list(had))} → {plain(list(value))}")
        elif had != value and not (key == "seeds" and value > had):
            lines.append(f"{key} {plain(had)} → {plain(value)}")
    lines += _changes(parse_config(json.dumps(found["config"])), cfg)
    if lines:
        raise ConfigError(
            f"{folder.root}: not what this study was asked for: {'; '.join(lines)}: set them back, or name "
            "another folder with --output"
        )
    return wanted


def _changes(before: Config, now: Config) -> list[str]:
    had = {each.key: each.value for each in settings(before)}
    return [
        f"{each.key} {plain(had.get(each.key))} → {plain(each.value)}"
        for each in settings(now)
        if each.kind != "machine" and had.get(each.key) != each.value
    ]


def as_json(asked: Asked, cfg: Config) -> dict[str, Any]:
    """As `study.json` keeps it."""
    return {**asdict(asked), "config": cfg.model_dump()}
