"""What a run reports: one small class for each kind of report.

The values of a report are one line of `events.jsonl`. Other programs read that file, so the names
and the order of the values do not change. Sums and means are over all ranks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Kind = Literal["start", "train", "eval", "checkpoint", "note", "stop", "end", "weights"]


def json_text(values: Any, indent: int | None = None) -> str:
    """`values` as JSON, with null for NaN and infinities, which JSON does not have."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class _Values:
    """Fields with names; a field that has fields itself is replaced by them."""

    def values(self) -> dict[str, Any]:
        """By name, in the order of the fields."""
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            flat.update(value.values() if isinstance(value, _Values) else {name: value})
        return flat


class Report(_Values):
    """Base of all reports."""

    kind: ClassVar[Kind]


@dataclass(frozen=True)
class Measured(_Values):
    """The training steps since the last report."""

    loss: float | None
    """Per image; None if every image was masked, as top1 and top5."""
    top1: float | None
    """0-1, as are all accuracies."""
    top5: float | None
    samples: float
    """Images, without padding."""
    seconds: float
    """Time of the steps; mean over ranks, as `step_seconds`."""
    images_per_second: float
    step_seconds: float
    network_bytes_per_second: float
    """Sent by the busiest interface of a machine; mean over machines."""
    data_wait_ratio: float
    """Share of the time in which a rank waited for images; mean over ranks."""
    comm_wait_ratio: float
    """Share of the time in which a rank waited for gradients; mean over ranks."""
    bad_samples: float
    """Images masked because they are bad."""
    read_retries: float
    """Reads that failed and were tried again."""


@dataclass(frozen=True)
class Scaling(_Values):
    """Scaling efficiency of the steps since the last report; all None with one rank."""

    efficiency: float | None = None
    """0-1, as are all efficiencies and shares."""
    efficiency_so_far: float | None = None
    """Of all intervals of this attempt."""
    efficiency_ceiling: float | None = None
    """What the slowest link allows; None if that is not known."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Lost share of the time by cause."""
    cause: str | None = None
    """The cause that costs most; None if little is lost."""
    straggler: int | None = None
    """The rank that all others wait for."""
    explanation: str | None = None

    def values(self) -> dict[str, Any]:
        """Each share has its own name, `lost_CAUSE_ratio`."""
        if self.efficiency is None:
            return {"efficiency": None}
        shares = {f"lost_{cause}_ratio": ratio for cause, ratio in self.lost.items()}
        flat: dict[str, Any] = {}
        for name, value in vars(self).items():
            flat.update(shares if name == "lost" else {name: value})
        return flat


@dataclass(frozen=True)
class Start(Report):
    """Training begins or goes on. Only rank 0 knows the restarts."""

    kind: ClassVar[Kind] = "start"
    world_size: int
    nodes: int
    setup_seconds: float
    restarts_after_signal: int | None = None
    restarts_after_crash: int | None = None
    changes: list[dict[str, str]] = field(default_factory=list)
    """Settings that differ from those of the attempt before: setting, kind, before, after."""


@dataclass(frozen=True)
class Train(Report):
    """One logging interval; the settings are those of its last step."""

    kind: ClassVar[Kind] = "train"
    step: int
    """Updates since the run began."""
    epoch: float
    """Epochs done, with the fraction of the present one."""
    epochs: int
    progress: float
    """Share of the epochs that is done, 0-1."""
    eta_s: float | None
    """None if every image of the interval was masked."""
    phase: int
    image_size: int
    batch_per_worker: int
    global_batch_size: int
    total_samples: int
    """Images since the run began."""
    lr: float
    momentum: float
    gradient_norm: float | None
    skipped_updates: float | None
    loss_scale: float | None
    measured: Measured
    gradient_noise_scale: float | None
    scaling: Scaling


@dataclass(frozen=True)
class Eval(Report):
    """One evaluation of `images` images, after `epoch` epochs."""

    kind: ClassVar[Kind] = "eval"
    epoch: float
    step: int
    images: int
    loss: float
    top1: float
    top5: float
    views: str = "one"
    """`train.val_views`, of which results are the mean."""

    def values(self) -> dict[str, Any]:
        """The views only where they are several."""
        flat = super().values()
        return {key: v for key, v in flat.items() if key != "views" or v != "one"}


@dataclass(frozen=True)
class Weights(Report):
    """How the weights moved in an epoch, `metrics.weights`; distances are L2 norms. A layer is a module
    with weights of its own, by its name."""

    kind: ClassVar[Kind] = "weights"
    epoch: float
    """Epochs done."""
    step: int
    distance: float
    """From the start of the run."""
    layer_distances: dict[str, float]
    epoch_distance: float
    """From where they were at the start of the epoch."""
    layer_epoch_distances: dict[str, float]
    path_length: float
    """Sum of the norms of the epoch's updates."""
    updates: int
    update_norms: list[float]
    """Percentiles 0, 1, … 100 of the norms of the epoch's updates."""


@dataclass(frozen=True)
class Checkpoint(Report):
    """A checkpoint that is complete; `seconds` is the time from the copy of the state to its last
    byte on the disk."""

    kind: ClassVar[Kind] = "checkpoint"
    path: str
    seconds: float
    bytes: int
    step: int
    """At which the state was copied."""
    stall_seconds: float = 0.0
    """For which training waited."""


@dataclass(frozen=True)
class Note(Report):
    """One line for the user."""

    kind: ClassVar[Kind] = "note"
    text: str


@dataclass(frozen=True)
class Stop(Report):
    """The attempt ends before the run does, with a checkpoint."""

    kind: ClassVar[Kind] = "stop"
    cause: Literal["signal"]
    step: int


@dataclass(frozen=True)
class RunScaling:
    """Scaling efficiency (0-1) of a whole attempt; None with one rank."""

    efficiency: float | None = None
    lost: dict[str, float] | None = None
    """Lost share of the time by cause."""


@dataclass(frozen=True)
class End(Report):
    """The run is complete: what `summary.json` holds."""

    kind: ClassVar[Kind] = "end"
    name: str
    run_dir: str
    world_size: int
    epochs: int
    steps: int
    samples: int
    loss: float | None
    """Of the last evaluation, as top1 and top5; None without a validation set."""
    top1: float | None
    top5: float | None
    images_per_second: float
    scaling_efficiency: float | None
    lost_time: dict[str, float] | None
    comm: dict[str, Any]
    """Settings of the gradient exchange."""
    noise_scale: dict[str, float] | None
    """`noise_scale.advice`."""
    train_seconds: float
    """Time of the training steps of the whole run."""
    wall_seconds: float
    """Of this attempt, set-up, evaluation and checkpoints included."""
    classes: list[str] = field(default_factory=list)
    """Their names, in the order of their numbers."""
    accepted_changes: list[str] = field(default_factory=list)
    """Changes of settings and of the datasets that --accept-changes has let pass."""
    attempts: int = 1
    attempt_train_seconds: float = 0.0
    """As `train_seconds`, of this attempt."""
    run_wall_seconds: float = 0.0
    """As `wall_seconds`, of all attempts together, without the pauses between them."""
    best: dict[str, float | None] | None = None
    """With `train.patience` or a target the evaluation with the lowest loss: loss, epoch, step."""
    stopped_early: bool | None = None
    """With `train.patience` or `train.stop_at`, whether it has ended the run."""
    views: str | None = None
    """The views of each validation image, where they are several."""
    weights_from: dict[str, str] | None = None
    """With `model.weights`, what they were: source, and for those of the hub repository, revision, file and
    sha256."""

    def values(self) -> dict[str, Any]:
        """Without an evaluation there are no keys for it, nor for an end that nothing asked for."""
        optional = ("loss", "top1", "top5", "best", "stopped_early", "views", "weights_from")
        flat = super().values()
        return {key: v for key, v in flat.items() if v is not None or key not in optional}
