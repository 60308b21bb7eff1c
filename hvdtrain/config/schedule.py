"""The sections `lr` and `phases`: what changes in the course of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.config.fields import (
    AtLeastOne,
    BatchSize,
    CropAspect,
    Epochs,
    Identity,
    ImageSide,
    InsideUnit,
    Momentum,
    NotNegative,
    Planned,
    Positive,
    PositiveFloat,
    Ratio,
    Section,
)


class LearningRate(Section):
    """The learning rate, and the momentum of cyclic schedules, as functions of the samples seen."""

    base: Identity[PositiveFloat] = 0.1
    """Highest learning rate of the schedule at `base_batch` images per step."""
    base_batch: Identity[Positive] = 256
    """Global batch size for which `base` was chosen."""
    scaling: Identity[Literal["linear", "sqrt", "none"]] = "linear"
    """How the rate grows with the global batch size, k = batch / base_batch: × k (`linear`), × √k
    (`sqrt`), or not at all (`none`)."""
    warmup: Identity[Literal["gradual", "constant", "none"]] = "gradual"
    """`gradual`: rise to the full rate by the same amount every step. `constant`: keep the first rate.
    `none`: start at the full rate; required for cyclic schedules, which rise by themselves."""
    warmup_epochs: Identity[NotNegative] = 5.0
    """Length of the warmup in epochs."""
    warmup_start: Identity[NotNegative | None] = None
    """First rate of the warmup; it is not scaled. null: `base`, or with `update: epoch` an equal part of
    the full rate in each epoch."""
    schedule: Identity[
        Literal[
            "constant",
            "step",
            "cosine",
            "polynomial",
            "piecewise",
            "onecycle",
            "onecycle_fastai",
            "cyclical",
        ]
    ] = "step"
    """Shape of the rate over the run. `step`: × `gamma` at `milestones`. `cosine`: half a cosine from
    the end of the warmup to 0. `polynomial`: (1 − share done)^`power`, also to 0. `piecewise`: lines
    between `points`. `onecycle`: one cycle as in torch (`pct_start`, `div_factor`,
    `final_div_factor`, `anneal`). `onecycle_fastai`: one cycle as in fastai (`pct_final`,
    `div_factor`). `cyclical`: triangles of `cycle_epochs`."""
    update: Identity[Literal["step", "epoch"]] = "step"
    """`step`: the rate changes with every update. `epoch`: an epoch keeps the rate of its first update; a
    gradual warmup of n epochs without `warmup_start` gives 1/n, 2/n, … of the full rate, as in NVIDIA's
    recipes."""
    milestones: Identity[list[NotNegative]] = [30.0, 60.0, 80.0]
    """Epochs at which `step` multiplies the rate."""
    gamma: Identity[Ratio] = 0.1
    """Factor at every milestone, or per epoch for `cycle_mode: exp_range`."""
    power: Identity[PositiveFloat] = 2.0
    """Exponent of `polynomial`."""
    points: Identity[list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]]] = []
    """[epoch, factor of the rate] pairs for `piecewise`, joined by straight lines."""
    pct_start: Identity[InsideUnit] = 0.3
    """Share of the run during which `onecycle` rises."""
    pct_final: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.1
    """Share of the run, at its end, during which `onecycle_fastai` falls from base / div_factor to a
    hundredth of that. Before that it rises and falls, each for the same time."""
    div_factor: Identity[AtLeastOne] = 25.0
    """A cycle starts at the rate base / div_factor."""
    final_div_factor: Identity[AtLeastOne] = 1e4
    """`onecycle` ends at the rate base / div_factor / final_div_factor."""
    anneal: Identity[Literal["cos", "linear"]] = "cos"
    """Shape of the rise and the fall of `onecycle`."""
    cycle_epochs: Identity[Annotated[float, Field(ge=0.001, allow_inf_nan=False)] | None] = None
    """Length of one triangle of `cyclical` (rise and fall together) in epochs."""
    cycle_mode: Identity[Literal["triangular", "triangular2", "exp_range"]] = "triangular"
    """Height of the triangles of `cyclical`: all equal (`triangular`), halved each time
    (`triangular2`), or × `gamma` every epoch (`exp_range`)."""
    cycle_momentum: Identity[
        Annotated[list[Momentum], Field(min_length=2, max_length=2)] | None
    ] = None
    """Momentum at the highest and at the lowest rate of a cycle, for example [0.85, 0.95]. null:
    always `optimizer.momentum`."""

    @property
    def cycles(self) -> bool:
        """True for cyclic schedules, which rise and fall by themselves."""
        return self.schedule in ("onecycle", "onecycle_fastai", "cyclical")

    @model_validator(mode="after")
    def _check(self) -> LearningRate:
        if self.schedule == "piecewise" and not self.points:
            raise ValueError(
                "schedule piecewise needs points, for example [[0, 0], [2, 1], [16, 0]], and "
                "warmup: none if the points rise"
            )
        if self.schedule == "piecewise" and self.points[0][1] < 1 and self.warmup != "none":
            raise ValueError(
                f"points that start at {self.points[0][1]:g} rise by themselves: set warmup: none, "
                f"found {self.warmup}"
            )
        epochs = [point[0] for point in self.points]
        if epochs != sorted(set(epochs)):
            raise ValueError("the epochs of points must rise")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError("milestones must rise")
        if self.cycles and self.warmup != "none":
            raise ValueError(
                f"schedule {self.schedule} rises by itself: set warmup: none, found {self.warmup}"
            )
        if self.cycles and self.update == "epoch":
            raise ValueError(
                f"schedule {self.schedule} changes the rate with every update: set update: step"
            )
        if self.schedule == "cyclical" and self.cycle_epochs is None:
            raise ValueError("schedule cyclical needs cycle_epochs, for example 4")
        if self.cycle_momentum and not self.cycles:
            raise ValueError(
                "cycle_momentum needs schedule onecycle, onecycle_fastai or cyclical, found "
                f"{self.schedule}"
            )
        if self.cycle_momentum and self.cycle_momentum[0] > self.cycle_momentum[1]:
            raise ValueError(
                "cycle_momentum is [at the highest rate, at the lowest], for example [0.85, 0.95]"
            )
        return self


class Phase(Section):
    """A number of epochs with the same image size, batch size and crop."""

    epochs: Planned[Epochs]
    """Number of epochs."""
    image_size: Identity[
        ImageSide | Annotated[list[ImageSide], Field(min_length=2, max_length=2)]
    ] = 224
    """Side of the training images in pixels. [from, to]: sizes change from epoch to epoch, starting
    at `from`, so that the epoch after the phase would have `to`; they are rounded to multiples of
    `size_multiple`."""
    size_multiple: Identity[Positive] = 32
    """If `image_size` is [from, to]: sizes in between are rounded to multiples of this."""
    batch_per_worker: Planned[BatchSize] = 32
    """Images of one rank in one forward pass. Batch norm computes its statistics over these images."""
    min_crop_area: Identity[Ratio] = 0.08
    """Smallest share of the image's area that a random resized crop keeps."""
    crop_aspect: Identity[CropAspect | None] = None
    """Smallest and largest width/height of a random resized crop. null: `data.crop_aspect`."""
    interpolation: Identity[Literal["bilinear", "bicubic"]] = "bilinear"
    """Filter for resizing, with antialiasing. Bicubic gives sharper images where small ones are
    enlarged, and takes about 1.5 times as long."""
    lr: Identity[
        PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None
    ] = None
    """Learning rate at `lr.base_batch` in this phase, or [from, to]; replaces `lr.schedule` and is
    scaled in the same way. null: `lr.schedule`."""
    momentum: Identity[
        Momentum | Annotated[list[Momentum], Field(min_length=2, max_length=2)] | None
    ] = None
    """Momentum in this phase, or [from, to]. null: `lr.cycle_momentum` or `optimizer.momentum`."""
    freeze: Identity[list[str]] = []
    """Parts that are no longer trained from this phase on, for example [whitening] of airbench94. Their
    batch-norm statistics do not change either."""
    unfreeze: Identity[list[str]] = []
    """Frozen parts that are trained from this phase on."""
    val_image_size: Identity[ImageSide | None] = None
    """Side of the evaluation images in pixels. null: the largest `image_size` of the phase."""
    rect_val: Identity[bool] = False
    """Evaluate on rectangles instead of squares: images of similar shape form a batch and are cropped
    to their mean aspect ratio, with `val_image_size` as the short side."""

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images in `epoch` of this phase, counted from 0.

        Source: ffcv-imagenet, `get_resolution`: linear between two epochs, rounded.
        """
        if isinstance(self.image_size, int):
            return self.image_size
        first, last = self.image_size
        if epoch == 0:
            return first
        between = first + (last - first) * epoch / self.epochs
        rounded = round(between / self.size_multiple) * self.size_multiple
        return min(max(rounded, min(first, last)), max(first, last))

    @property
    def largest_image_size(self) -> int:
        """Side of the largest training images of the phase."""
        return max(self.image_size_at(epoch) for epoch in range(self.epochs))

    @property
    def smallest_image_size(self) -> int:
        """Side of the smallest training images of the phase."""
        return min(self.image_size_at(epoch) for epoch in range(self.epochs))
