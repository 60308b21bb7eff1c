"""The sections `lr` and `phases` of the configuration: what changes in the course of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.config.fields import (
    AtLeastOne,
    ImageSide,
    InsideUnit,
    Momentum,
    NotNegative,
    Positive,
    PositiveFloat,
    Ratio,
    Section,
)


class LearningRate(Section):
    """The learning rate, and the momentum of a cycle, as functions of samples seen."""

    base: PositiveFloat = 0.1
    """Highest learning rate of the schedule at `base_batch` images per step."""
    base_batch: Positive = 256
    """Global batch that `base` was chosen for."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the rate follows the global batch: ×k, ×√k or not at all, k = batch / base_batch."""
    warmup: Literal["gradual", "constant", "none"] = "gradual"
    """Rise to the full rate by a constant step per iteration, hold the first rate, or start at
    full rate. A cycle rises by itself and takes none."""
    warmup_epochs: NotNegative = 5.0
    """Length of the warmup in epochs."""
    warmup_start: NotNegative | None = None
    """First rate of the warmup, not scaled. None: `base`."""
    schedule: Literal[
        "constant",
        "step",
        "cosine",
        "polynomial",
        "piecewise",
        "onecycle",
        "onecycle_fastai",
        "cyclical",
    ] = "step"
    """Shape over the run: × `gamma` at `milestones`; half a cosine, or (1 − share done)^`power`,
    from the end of the warmup to 0; `points`; one cycle as in torch (`pct_start`, `div_factor`,
    `final_div_factor`, `anneal`) or as in fastai (`pct_final`, `div_factor`); triangles of
    `cycle_epochs`."""
    milestones: list[NotNegative] = [30.0, 60.0, 80.0]
    """Epochs at which `step` multiplies the rate."""
    gamma: Ratio = 0.1
    """Factor of every milestone; of every epoch for `cycle_mode: exp_range`."""
    power: PositiveFloat = 2.0
    """Exponent of `polynomial`."""
    points: list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]] = []
    """[epoch, factor] pairs for `piecewise`, joined by straight lines."""
    pct_start: InsideUnit = 0.3
    """Share of the run in which `onecycle` rises."""
    pct_final: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the run, at its end, in which `onecycle_fastai` falls from base / div_factor to a
    hundredth of that; before it rises and falls for equally long."""
    div_factor: AtLeastOne = 25.0
    """A cycle starts at base / div_factor."""
    final_div_factor: AtLeastOne = 1e4
    """`onecycle` ends at base / div_factor / final_div_factor."""
    anneal: Literal["cos", "linear"] = "cos"
    """Shape of rise and fall of `onecycle`."""
    cycle_epochs: PositiveFloat | None = None
    """Length of one triangle of `cyclical`, rise and fall together, in epochs."""
    cycle_mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    """Height of the triangles: all alike, halved each time, or × `gamma` every epoch."""
    cycle_momentum: Annotated[list[Momentum], Field(min_length=2, max_length=2)] | None = None
    """Momentum at the highest and at the lowest rate of a cycle, for example [0.85, 0.95]. None:
    `optimizer.momentum` throughout."""

    @property
    def cycles(self) -> bool:
        """Whether the schedule rises and falls by itself."""
        return self.schedule in ("onecycle", "onecycle_fastai", "cyclical")

    @model_validator(mode="after")
    def _check(self) -> LearningRate:
        if self.schedule == "piecewise" and not self.points:
            raise ValueError(
                "schedule piecewise needs points, for example [[0, 0], [2, 1], [16, 0]], and with "
                "points that rise warmup: none"
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
    """A stretch of epochs at one image size, batch and crop."""

    epochs: Positive
    """Number of epochs."""
    image_size: ImageSide | Annotated[list[ImageSide], Field(min_length=2, max_length=2)] = 224
    """Side of the training images in pixels; [from, to]: the first epoch has from, and the epoch
    after the phase would have to, each rounded to a multiple of `size_multiple`."""
    size_multiple: Positive = 32
    """What the sizes between the two of an `image_size` ramp are rounded to."""
    batch_per_worker: Positive = 32
    """Images per rank in one forward pass; batch-norm statistics are taken over these."""
    min_crop_area: Ratio = 0.08
    """Smallest share of the image that a random resized crop keeps."""
    crop_aspect: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None = None
    """Smallest and largest width/height of a random resized crop. None: `data.crop_aspect`."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter of all resizing, widened where it reduces. Bicubic is sharper where small images are
    enlarged, and costs about half more."""
    lr: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None = (
        None
    )
    """Rate (or [from, to]) at `base_batch` in this phase, in place of `lr.schedule`; scaled alike."""
    momentum: Momentum | Annotated[list[Momentum], Field(min_length=2, max_length=2)] | None = None
    """Momentum (or [from, to]) in this phase. None: `lr.cycle_momentum` or `optimizer.momentum`."""
    unfreeze: list[str] = []
    """Parts of those in `model.freeze` that are trained from this phase on."""
    val_image_size: ImageSide | None = None
    """Side of the evaluation images. None: `image_size`, the largest one of a ramp."""
    rect_val: bool = False
    """Evaluate on rectangles: images of like shape together, cropped to the mean of their aspect
    ratios with `val_image_size` as the short side, in place of a square."""

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images in `epoch` of this phase, the first being 0.

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
