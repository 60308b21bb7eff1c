"""The schema of the configuration: every field, its values and its meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """One mapping of the file. Frozen, strict, and no key is accepted that it does not know."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class Data(Section):
    """Where the images are and how they are turned into arrays."""

    train: str | None = None
    """Training images: a folder with one sub-folder per class, or any other kind of dataset that
    docs/data.md lists (packed, tar shards, CSV of path,label, CIFAR-10)."""
    val: str | None = None
    """Validation images with the same classes, of any kind. None: no evaluation."""
    train_size: Positive | None = None
    """Number of training images. Lets `plan` work without the dataset; checked against it."""
    augment: Literal["random_resized_crop", "pad_crop", "none"] = "random_resized_crop"
    """Training crop: a random area resized (ImageNet), reflect-pad 4 at 32 px and crop (CIFAR),
    or the whole image resized."""
    crop_aspect: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = [0.75, 4 / 3]
    """Smallest and largest width/height of a random resized crop."""
    flip: bool = True
    """Mirror half of the training images left to right."""
    shuffle: Literal["full", "shards"] = "full"
    """Order of training images: any order of all, or shards in random order whose images are mixed
    within `shuffle_window`, for network disks. docs/data-order.md compares them."""
    shuffle_window: Positive = 16384
    """Images within which `shuffle: shards` mixes."""
    color_jitter: Annotated[list[Fraction], Field(min_length=4, max_length=4)] = [0.0] * 4
    """Strengths of random brightness, contrast, saturation (factors in 1 ± strength) and hue
    (± strength turns of the colour circle) of training images. 0: unchanged."""
    val_crop_ratio: Ratio = 0.875
    """Side of the centre crop over the resized short side in evaluation (224/256)."""
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.485, 0.456, 0.406]
    """Per-channel mean of RGB in 0–1, subtracted from every image."""
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [0.229, 0.224, 0.225]
    """Per-channel standard deviation of RGB in 0–1, divides every image."""
    on_bad: Literal["fail", "mask"] = "fail"
    """A training image that cannot be read or decoded ends the run, or its place is held by a
    grey image with weight 0 in loss and metrics. Evaluation always ends."""
    max_bad_ratio: Fraction = 0.01
    """Largest share of an epoch's images that `on_bad: mask` may leave out before the run ends."""
    cache: Literal["none", "ram", "device"] = "none"
    """Decode all images once, before the first step, and keep their pixels in memory that the
    ranks of a node share (`ram`), or on each device. For images of one size that are not cut to
    windows: `augment` pad_crop or none."""
    decode_threads: Positive | None = None
    """Decoding threads per rank. None: the cores of the node shared by its ranks."""
    prefetch: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches decoded ahead of the training step."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.cache != "none" and self.augment == "random_resized_crop":
            raise ValueError("cache needs augment pad_crop or none, found random_resized_crop")
        return self


class Model(Section):
    """The network."""

    name: str = "resnet50"
    """A name that `hvdtrain models` lists, or `timm:NAME`, `torchvision:NAME` where installed."""
    num_classes: Positive | None = None
    """Outputs of the classifier. None: the number of class folders."""
    zero_gamma: bool = True
    """Start the last batch-norm scale of every residual block at 0 (Goyal et al. 2017); of
    normalizer-free networks the skip gains. No effect on networks without such blocks."""
    width: Positive | None = None
    """Width factor of the wide ResNets. None: the network's own."""
    pool: Literal["avg", "concat"] | None = None
    """Before the classifier: the mean of every channel, or its maximum and its mean. None: the
    network's own."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the pooled features zeroed in training. None: the network's own, 0 but for NFNets."""
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Residual branches are dropped per image, at this rate × i / L for block i of L. None: the
    network's own, 0 but for NFNets."""
    blurpool: bool = False
    """Blur the input of strided convolutions."""
    weights: str | None = None
    """Start from the weights in this file (safetensors or torch), also with other classes, and
    also a ResNet's in an NF-ResNet. docs/models.md tells what fits."""
    freeze: list[str] = []
    """Parts that are not trained, for example [stem, stages.0]; their batch norms keep their
    statistics."""


class Optimizer(Section):
    """How gradients become updates."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Use Nesterov's form of momentum."""
    weight_decay: NotNegative = 1e-4
    """L2 decay on weights; batch norm and biases are not decayed."""
    clip_norm: PositiveFloat | None = None
    """Largest global L2 norm of the averaged gradient. None: no clipping."""


class LearningRate(Section):
    """The learning rate as a function of samples seen."""

    base: PositiveFloat = 0.1
    """Learning rate at `base_batch` images per step."""
    base_batch: Positive = 256
    """Global batch that `base` was chosen for."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the rate follows the global batch: ×k, ×√k or not at all, k = batch / base_batch."""
    warmup: Literal["gradual", "constant", "none"] = "gradual"
    """Rise from `base` by a constant step per iteration, hold `base`, or start at full rate."""
    warmup_epochs: NotNegative = 5.0
    """Length of the warmup in epochs."""
    schedule: Literal["constant", "step", "cosine", "piecewise"] = "step"
    """Shape over the run: × `gamma` at `milestones`, half a cosine to 0, or `points`."""
    milestones: list[NotNegative] = [30.0, 60.0, 80.0]
    """Epochs at which `step` multiplies the rate."""
    gamma: Ratio = 0.1
    """Factor of every milestone."""
    points: list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]] = []
    """[epoch, factor] pairs for `piecewise`, joined by straight lines."""

    @model_validator(mode="after")
    def _check(self) -> LearningRate:
        if self.schedule == "piecewise" and not self.points:
            raise ValueError(
                "schedule piecewise needs points, for example [[0, 0], [2, 1], [16, 0]]"
            )
        epochs = [point[0] for point in self.points]
        if epochs != sorted(set(epochs)):
            raise ValueError("the epochs of points must rise")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError("milestones must rise")
        return self


class Phase(Section):
    """A stretch of epochs at one image size, batch and crop."""

    epochs: Positive
    """Number of epochs."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Side of the training images in pixels."""
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
    val_image_size: Annotated[int, Field(ge=8)] | None = None
    """Side of the evaluation images. None: `image_size`."""
    rect_val: bool = False
    """Evaluate on rectangles: images of like shape together, cropped to the mean of their aspect
    ratios with `val_image_size` as the short side, in place of a square."""


class Train(Section):
    """The training step."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type. auto: bf16 where the GPU has it, fp16 with a loss scale on older GPUs,
    fp32 without a GPU."""
    accumulate: Positive = 1
    """Forward passes averaged into one update."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: Fraction = 0.0
    """Alpha of mixup: images and targets averaged in pairs by a Beta(alpha, alpha) share. 0: off."""
    cutmix: Fraction = 0.0
    """Alpha of CutMix: a box of each image from another one. 0: off. With `mixup`: half each."""
    channels_last: bool = True
    """Keep images and weights in NHWC memory order."""
    evaluate_every: Positive = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    log_every: Positive = 20
    """Steps between two lines of progress, and between two metric reductions."""


class Comm(Section):
    """Gradient exchange."""

    compression: Literal["none", "fp16"] = "none"
    """Type of gradients on the wire."""
    group_mb: PositiveFloat = 16.0
    """Gradients are exchanged in groups of about this size, in MiB, while backward still runs."""


class Checkpoint(Section):
    """What is kept to resume from."""

    every_epochs: Positive = 1
    """Epochs between two checkpoints."""
    keep: Positive = 2
    """Newest checkpoints kept; older ones are deleted."""


class Metrics(Section):
    """The Prometheus endpoint of each rank."""

    enabled: bool = True
    """Serve metrics over HTTP."""
    port: Annotated[int, Field(ge=1024, le=65000)] = 19400
    """Port of local rank 0; local rank r listens on port + r."""
    bind: str = "127.0.0.1"
    """Address to listen on."""


class Config(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run, and of its directory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of weights, sample order and augmentation."""
    output: str = "runs"
    """Directory in which `<name>-<time>/` is made."""
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    lr: LearningRate = LearningRate()
    phases: Annotated[list[Phase], Field(min_length=1)]
    """The training phases, in order."""
    train: Train = Train()
    comm: Comm = Comm()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()
