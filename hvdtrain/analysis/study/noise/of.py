"""The noise scale of a run: what it recorded, else measured at its best checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hvdtrain.analysis.study.gradients import best_checkpoint
from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.noise.measure import OWN, measure
from hvdtrain.analysis.study.noise.recorded import read_recorded
from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.errors import ResourceError
from hvdtrain.report.text import MISSING
from hvdtrain.run.subject import find_subjects

Source = Literal["either", "recorded", "checkpoint"]
CHOICE = Choice(batch=OWN)
"""2000 training images in batches of the run's own size."""


@dataclass(frozen=True)
class NoiseScaleOf:
    """The noise scale of a run, in images."""

    source: Literal["recorded", "checkpoint"]
    place: str
    """`last quarter of the updates`, or the path of the checkpoint."""
    scale: float | None
    """Mean of what was recorded there, or as measured; None where the noise hides the signal."""
    low: float | None
    """Recorded: mean less the standard deviation of the values. Measured: lower end of the 95 % interval."""
    high: float | None
    """The same above; None: no upper bound, the images that were measured are too few."""

    def text(self) -> str:
        """Such as `1,310 (1,150–1,480)`, or `above 2,600`."""
        if self.scale is not None and self.low is not None and self.high is not None:
            return f"{self.scale:,.0f} ({self.low:,.0f}\N{EN DASH}{self.high:,.0f})"
        return MISSING if self.low is None else f"above {self.low:,.0f}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def noise_scale_of(
    run: Path,
    *,
    source: Source = "either",
    checkpoint: Path | None = None,
    choice: Choice = CHOICE,
    comm: Comm | None = None,
) -> NoiseScaleOf:
    """The noise scale of the run directory `run`.

    `source` `recorded`: mean over the last quarter of its updates. `checkpoint`: measured at `checkpoint`, by
    default the one of the lowest validation loss, on the images of `choice`. `either`: the first if there is one.
    Compare runs by one source only: `checkpoint` is there for all. Every rank of `comm` (default: one process)
    must call, and gets the same. Raises ResourceError, CheckpointError, DataError or ConfigError.
    """
    if source != "checkpoint":
        try:
            part = read_recorded(run).last_quarter()
        except ResourceError:
            if source == "recorded":
                raise
        else:
            low, high = max(0.0, part.mean - part.deviation), part.mean + part.deviation
            return NoiseScaleOf("recorded", "last quarter of the updates", part.mean, low, high)
    path = checkpoint or best_checkpoint(run)
    comm = comm or Solo()
    [subject] = find_subjects([path], [], comm)
    _it, found = measure(subject, choice, comm)
    return NoiseScaleOf("checkpoint", str(path), found["scale"], found["low"], found["high"])
