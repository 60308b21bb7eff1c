"""The same global batch on another number of ranks than before.

Learning rates, updates and the order of images depend on the global batch, not on how ranks share it. So a
run that is resumed with the same settings on more or fewer ranks takes another number of accumulation
steps, and where these do not divide its share, a smaller batch per worker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError

MOST_STEPS = 2**16
"""Accumulation steps that the schema allows."""


class UnsharedError(ConfigError):
    """So many ranks cannot share the global batch."""


class Batch(NamedTuple):
    """The fields that make up the global batch, ranks aside."""

    accumulate: int
    per_worker: list[int]
    """Of each phase."""

    @classmethod
    def of(cls, cfg: Config) -> Batch:
        """Those of a config."""
        return cls(cfg.train.accumulate, [phase.batch_per_worker for phase in cfg.phases])

    @classmethod
    def read(cls, values: Any) -> Batch | None:
        """Of `as_dict`, from a file; None if it is anything else."""
        if not isinstance(values, Mapping):
            return None
        steps, sizes = values.get("accumulate"), values.get("batch_per_worker")
        if type(steps) is not int or not isinstance(sizes, list):
            return None
        return cls(steps, sizes) if all(type(size) is int for size in sizes) else None

    def as_dict(self) -> dict[str, Any]:
        """As `environment.json` keeps it."""
        return {"accumulate": self.accumulate, "batch_per_worker": self.per_worker}

    def total(self, ranks: int) -> list[int]:
        """The global batch of each phase."""
        return [self.accumulate * size * ranks for size in self.per_worker]

    def put_in(self, cfg: Config) -> Config:
        """`cfg` with these."""
        train = cfg.train.model_copy(update={"accumulate": self.accumulate})
        phases = [
            phase.model_copy(update={"batch_per_worker": size})
            for phase, size in zip(cfg.phases, self.per_worker, strict=True)
        ]
        return cfg.model_copy(update={"train": train, "phases": phases})


def shared_anew(given: Batch, wanted: list[int], ranks: int) -> Batch:
    """Few accumulation steps, with batches no larger than `given`, that give the global batches
    `wanted` of the first phases on `ranks` ranks; further phases keep their batch per worker.

    Raises UnsharedError, with the nearest numbers of ranks that can, if these cannot.
    """
    sizes = given.per_worker[: len(wanted)]
    if not any(total % ranks for total in wanted):
        shares = [total // ranks for total in wanted]
        fewest = max(math.ceil(share / size) for share, size in zip(shares, sizes, strict=True))
        for steps in range(fewest, min(MOST_STEPS, *shares) + 1):
            if not any(share % steps for share in shares):
                batches = [share // steps for share in shares]
                return Batch(steps, batches + given.per_worker[len(wanted) :])
    listed = " and ".join(map(str, dict.fromkeys(wanted)))
    raise UnsharedError(
        f"{ranks} ranks cannot share the global batch of {listed} images equally: use "
        f"{_nearest(wanted, ranks)} ranks, or let it change with train.on_other_ranks=as_given"
    )


def told(
    given: Batch,
    used: Batch,
    ranks: int,
    before: int,
    verb: str = "resumed",
    *,
    global_norm: bool = False,
) -> str:
    """What to tell of a global batch that is kept by other means than `given`.

    `global_norm`: batch norm takes its statistics over a forward pass of all ranks, which may then be
    over other images.
    """
    where = f"instead of {before}" if ranks != before else "again"
    steps = (
        "1 accumulation step keeps"
        if used.accumulate == 1
        else (f"{used.accumulate} accumulation steps keep")
    )
    smaller = [
        f"phases.{index}.batch_per_worker {new} instead of {old}"
        for index, (old, new) in enumerate(zip(given.per_worker, used.per_worker, strict=True))
        if old != new
    ]
    if smaller:
        steps = f"{', '.join(smaller)} and {steps.replace(' keeps', ' keep')}"
    totals = " and ".join(map(str, dict.fromkeys(used.total(ranks))))
    text = f"{verb} on {ranks} ranks {where}: {steps} the global batch of {totals}"
    passes = [[size * n for size in b.per_worker] for b, n in ((given, before), (used, ranks))]
    if global_norm and passes[0] != passes[1]:
        was, now = (" and ".join(map(str, dict.fromkeys(sizes))) for sizes in passes)
        text += f"; batch norm takes its statistics over {now} images instead of {was}"
    return text.replace("on 1 ranks", "on 1 rank")


def _nearest(wanted: list[int], ranks: int) -> str:
    """The next numbers of ranks, below and above, that divide all of `wanted`."""
    whole = math.gcd(*wanted)
    below = next((n for n in range(min(ranks - 1, whole), 0, -1) if whole % n == 0), None)
    above = next((n for n in range(ranks + 1, min(whole, 2 * ranks) + 1) if whole % n == 0), None)
    return " or ".join(str(n) for n in (below, above) if n)
