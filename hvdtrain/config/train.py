"""The section `train` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hvdtrain.config.fields import (
    Fraction,
    Identity,
    LossScale,
    Machine,
    NotNegative,
    PathText,
    Planned,
    Positive,
    PositiveFloat,
    Ratio,
    Section,
)
from hvdtrain.config.hub_address import WeightsText

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ValViews = Literal["one", "mirror", "six"]


class StopAt(Section):
    """What ends the run before its last epoch: an evaluation that reaches all targets given, or the time."""

    top1: Planned[Fraction | None] = None
    """Share of images whose class is the most likely one, 0 to 1. null: any."""
    top5: Planned[Fraction | None] = None
    """Share of images whose class is among the five most likely ones. null: any."""
    loss: Planned[PositiveFloat | None] = None
    """Validation loss at most. null: any."""
    minutes: Planned[PositiveFloat | None] = None
    """Training time of the run, all attempts together: it ends with the epoch in which this is passed. Time
    of evaluations, checkpoints and lost steps does not count. null: any."""

    @property
    def targets(self) -> dict[str, float]:
        """What an evaluation must reach, by name."""
        return self.model_dump(exclude={"minutes"}, exclude_none=True)


class Teacher(Section):
    """A trained network from whose outputs the run also learns (distillation)."""

    weights: Identity[WeightsText | None] = None
    """Run directory, checkpoint or weights file of the teacher, which only rank 0 needs to see, or a
    repository of the hub, as in `model.weights`. Its classes must be those of the run. null: no teacher."""
    model: Identity[str | None] = None
    """Network of the weights, as in `model.name`. null: that of their run, with its options, or of their
    repository."""
    share: Identity[Ratio] = 0.5
    """Share of the teacher in the loss: share · T² · KL(teacher ‖ student) + (1 − share) · `loss`."""
    temperature: Identity[Annotated[float, Field(ge=0.1, le=100)]] = 1.0
    """T, by which both networks' logits are divided. Above 1 the classes that are less likely count more."""

    @model_validator(mode="after")
    def _check(self) -> Teacher:
        if self.weights is None and self != type(self).model_construct():
            raise ValueError("model, share and temperature need weights: name those of a teacher")
        return self


class Train(Section):
    """The training step."""

    precision: Identity[Precision] = "auto"
    """Number type of autocast. `auto`: bf16 if the GPU supports it, fp16 on older GPUs, fp32 without a
    GPU."""
    loss_scale: Identity[Literal["dynamic"] | LossScale] = "dynamic"
    """Factor of the loss that keeps fp16 gradients from becoming 0. `dynamic`: halved after an
    overflow, doubled after 2000 updates. A number: fixed. All ranks skip an update that overflowed."""
    accumulate: Planned[Annotated[int, Field(gt=0, le=2**16)]] = 1
    """Number of forward and backward passes whose gradients are averaged for one update."""
    on_other_ranks: Machine[Literal["keep_batch", "as_given"]] = "keep_batch"
    """What a run does that is resumed on another number of ranks. `keep_batch`: other accumulation steps,
    or a smaller batch per worker, keep the global batch, so that rates and updates stay the same.
    `as_given`: the global batch changes, and with it the learning rate."""
    ema_decay: Identity[Annotated[float, Field(gt=0, lt=1)] | None] = None
    """Evaluate a moving average of weights and batch-norm statistics; this is the share of the old
    average that each update keeps. null: evaluate the weights."""
    noise_scale_every: Machine[Annotated[int, Field(ge=0)]] = 10
    """Updates between two measurements of the gradient noise scale, which shows how large a batch is
    useful. Needs at least two ranks or `accumulate` ≥ 2. 0: never."""
    loss: Identity[Literal["cross_entropy", "binary_cross_entropy"]] = "cross_entropy"
    """What training minimises: the cross entropy over all classes, or the mean over the classes of the
    binary cross entropy of each alone, which suits mixed targets. Evaluations report the former."""
    target_threshold: Identity[Annotated[float, Field(ge=0, lt=1)] | None] = None
    """With `binary_cross_entropy`, targets above this are 1 and the others 0: an image that mixup or
    CutMix made of two classes is then of both. null: targets stay shares."""
    label_smoothing: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Share of the target that is spread evenly over all classes."""
    teacher: Teacher = Teacher()
    mixup: Identity[Fraction] = 0.0
    """Alpha of mixup: images and targets are averaged in pairs, with a share from Beta(alpha, alpha). 0:
    off."""
    cutmix: Identity[Fraction] = 0.0
    """Alpha of CutMix: a box of each image is replaced by that of another image. 0: off. With `mixup`,
    each is used for half of the images."""
    mix_share: Identity[Literal["image", "batch"]] = "image"
    """Whether the share of mixup or CutMix is drawn for each image, or once for all images of a forward
    pass on a rank."""
    mix_partner: Identity[Literal["neighbour", "random", "doubled"]] = "neighbour"
    """What an image is mixed with: the next one of its forward pass, or one drawn from it. `doubled`:
    another image, read and decoded beside it; every image is once an epoch the other of a pair."""
    channels_last: Planned[bool] = True
    """Keep images and weights in NHWC memory order."""
    compile: Planned[Literal["none", "stages", "whole"]] = "none"
    """Compile the network with torch.compile, in training. `stages`: in parts, so that gradients are
    exchanged during the backward pass. `whole`: in one, after which they are exchanged. Takes seconds to
    minutes at the start and at each new image size or batch; see docs/how-to/compile.md."""
    evaluate_every: Planned[Positive] = 1
    """Epochs between two evaluations. The last epoch is always evaluated."""
    val_views: Identity[ValViews] = "one"
    """Views of each validation image whose logits are averaged. `mirror`: the image and its mirror image.
    `six`: also both moved by a pixel up-left and down-right, with half of the weight. Evaluations take 2
    or 6 times as long, and results say so: they are not comparable with those of one view."""
    patience: Planned[Positive | None] = None
    """End the run when the validation loss was not below its lowest value in so many evaluations in a
    row, and keep the checkpoint of the lowest. null: train all epochs."""
    stop_at: StopAt = StopAt()
    """End the run after the first evaluation that reaches a target, or after some time; nothing given: train
    all epochs."""
    log_every: Machine[Positive] = 20
    """Steps between two reports. Only then are metrics summed over the ranks."""
    compute_threads: Planned[Annotated[int, Field(gt=0, le=256)] | None] = None
    """Threads of a rank that compute the network on a CPU. null: the cores of the rank. Fewer are faster
    on a machine with other work; results then differ in their last digits."""
    rollbacks: Machine[Annotated[int, Field(ge=0, le=1000)]] = 0
    """If a loss is not finite, or jumps (`loss_spike`), go back to the weights and optimizer state of the
    last checkpoint and go on with the next images, at most so many times in an attempt; then the run ends
    with exit code 7, as it does at once with 0 or without a checkpoint."""
    loss_spike: Machine[NotNegative] = 0.0
    """A loss that is in three steps in a row this many robust standard deviations above the median of the
    128 steps before counts as not finite, see docs/exit-codes.md. 10 is a good value, 0: off."""
    compare_every: Machine[Positive | None] = None
    """Updates from one comparison of weights and optimizer state over all ranks to the next; they are
    also compared before each evaluation and checkpoint. null: about once a minute."""
    on_divergence: Machine[Literal["stop", "majority", "warn"]] = "stop"
    """What happens if ranks differ in a bit. `stop`: the run ends with exit code 9; go on from the last
    checkpoint, when all were equal. `majority`: all take the state that more than half of the ranks
    have; stop if there is none, as on two ranks. `warn`: only say it; for ranks on different hardware,
    which may round differently."""
    stop_when: Machine[PathText | None] = None
    """A file that appears, or a URL that answers with 200, for example a cloud's notice of preemption: the
    run then writes a checkpoint and ends with exit code 75, see docs/how-to/resume.md. null: off."""
    stall_timeout: Machine[NotNegative] = 600.0
    """Seconds without any progress (a step, a batch of an evaluation, a stage) after which a rank ends,
    and with it the job, see docs/exit-codes.md. Set-up and the first step get six times as long. 0:
    wait for ever."""

    @model_validator(mode="after")
    def _check_target(self) -> Train:
        if self.target_threshold is not None and self.loss != "binary_cross_entropy":
            raise ValueError(
                f"target_threshold: {self.target_threshold:g} needs loss: binary_cross_entropy; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_mixing(self) -> Train:
        given = {
            "mix_share": (self.mix_share, "image"),
            "mix_partner": (self.mix_partner, "neighbour"),
        }
        for key, (value, usual) in given.items():
            if value != usual and not (self.mixup or self.cutmix):
                raise ValueError(f"{key}: {value} needs mixup or cutmix above 0")
        return self

    @field_validator("stop_when")
    @classmethod
    def _check_stop_when(cls, value: str | None) -> str | None:
        scheme, separator, place = (value or "").partition("://")
        if separator and (scheme not in ("http", "https") or not place.strip("/")):
            raise ValueError(f"{value}: expected a file, or a URL such as http://HOST/PATH")
        return value
