"""The schema of the configuration: every field, its values and its meaning."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hvdtrain.config.data import Data
from hvdtrain.config.fields import (
    Fraction,
    Momentum,
    NotNegative,
    Positive,
    PositiveFloat,
    Section,
)
from hvdtrain.config.metrics import Metrics
from hvdtrain.config.schedule import LearningRate, Phase

GROUP_MB = 16.0
"""Size of the groups that gradients are exchanged in, MiB, where nothing else is said."""

__all__ = [
    "GROUP_MB",
    "Checkpoint",
    "Comm",
    "Config",
    "Data",
    "LearningRate",
    "Metrics",
    "Model",
    "Optimizer",
    "Phase",
    "Section",
    "Train",
]


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
    also a ResNet's in an NF-ResNet. docs/reference/models.md tells what fits."""
    freeze: list[str] = []
    """Parts that are not trained, for example [stem, stages.0]; their batch norms keep their
    statistics."""


class Optimizer(Section):
    """How gradients become updates."""

    name: Literal["sgd", "lars", "lamb", "adamw"] = "sgd"
    """The update rule: SGD up to batches of about 8192; LARS (with `momentum`) or LAMB beyond, which
    give every layer a rate of its own; AdamW. docs/reference/optimizers.md has the formulas."""
    momentum: Momentum = 0.9
    """Momentum of SGD and LARS."""
    nesterov: bool = True
    """Use Nesterov's form of momentum in SGD."""
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Decay of the mean and of the mean square of the gradient in LAMB and AdamW."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square in LAMB and AdamW; LAMB's paper has 1e-6."""
    trust_coefficient: PositiveFloat = 0.001
    """LARS: a layer's step at rate 1 over the norm of its weights."""
    weight_decay: NotNegative = 1e-4
    """Decay of weights, not of norms, biases and gains: in SGD and LARS an L2 term of the gradient,
    in LAMB and AdamW apart from it; a step takes off rate × decay × weight."""
    decay_norms_and_biases: bool = False
    """Decay norms, biases and gains as well, for comparison."""
    clip_norm: PositiveFloat | None = None
    """Largest global L2 norm of the averaged gradient. None: no clipping."""
    agc: PositiveFloat | None = None
    """Adaptive gradient clipping: largest norm of a unit's gradient over that of its weights, the
    classifier left out. The larger the batch the smaller: 0.01 at 4096. None: no clipping."""

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.clip_norm is not None and self.agc is not None:
            raise ValueError("clip_norm and agc both bound the gradient: set one of them to null")
        return self

    @property
    def first_momentum(self) -> float:
        """Decay of the mean of gradients: momentum, or β1."""
        return self.betas[0] if self.name in ("lamb", "adamw") else self.momentum


class Train(Section):
    """The training step."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type. auto: bf16 where the GPU has it, fp16 with a loss scale on older GPUs,
    fp32 without a GPU."""
    loss_scale: Literal["dynamic"] | PositiveFloat = "dynamic"
    """Factor that keeps fp16 gradients from vanishing: halved when one overflows and doubled every
    2000 updates, or a fixed number. An update that overflowed is skipped on all ranks."""
    accumulate: Positive = 1
    """Forward passes averaged into one update."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an average of weights and batch-norm statistics, this much of it old at every update,
    and evaluate that one. None: none."""
    noise_scale_every: Annotated[int, Field(ge=0)] = 10
    """Updates between two measurements of the gradient noise scale, which tells how large a batch
    is useful. Needs two ranks, or `accumulate` of 2. 0: never."""
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

    tune: Literal["measure", "fixed"] = "fixed"
    """`measure`: choose `group_mb` where it is not set, and `compression` where it is auto, from a
    few seconds of exchanges at the start. tuning.json keeps the choice for when the run goes on.
    `fixed`: the same settings in every run, so that equal runs end in equal weights to the bit."""
    compression: Literal["none", "fp16", "auto"] = "none"
    """Type of gradients on the wire: their own, or fp16, which halves the bytes and rounds. auto:
    fp16 where `tune: measure` finds that it saves a tenth of the time."""
    group_mb: PositiveFloat | None = None
    """Gradients are exchanged in groups of about this size, in MiB, while backward still runs.
    None: 16, or what `tune: measure` chooses."""
    link_gbit: PositiveFloat | None = None
    """Speed of the network between machines, Gbit/s per machine, from which the ceiling of the
    efficiency is computed. None: what the kernel says of the interface that carries most."""
    interface: str = "auto"
    """Network between the machines: the name of an interface, or, as names may differ, its subnet
    (10.0.0.0/24). auto: the one that leads to the other machines. All libraries are told."""
    preflight: bool = True
    """Compare all ranks before the first step and measure their links, in a few seconds: see
    docs/reference/preflight.md. false: where you know better."""

    @field_validator("interface")
    @classmethod
    def _check_interface(cls, value: str) -> str:
        if "/" in value:
            try:
                ip_network(value, strict=False)
            except ValueError:
                raise ValueError("expected a subnet such as 10.0.0.0/24") from None
        elif not re.fullmatch(r"[\w.@:-]{1,15}", value):
            raise ValueError("expected auto, the name of an interface or a subnet") from None
        return value

    @model_validator(mode="after")
    def _check(self) -> Comm:
        if self.compression == "auto" and self.tune == "fixed":
            raise ValueError(
                "compression: auto is chosen by measuring: set tune: measure, or none or fp16"
            )
        return self


class Checkpoint(Section):
    """What is kept to resume from."""

    every_epochs: Positive = 1
    """Epochs between two checkpoints."""
    keep: Positive = 2
    """Newest checkpoints kept; older ones are deleted."""


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

    @model_validator(mode="after")
    def _check(self) -> Config:
        for number, phase in enumerate(self.phases):
            for part in phase.unfreeze:
                frozen = self.model.freeze
                if not any(f"{part}.".startswith(f"{name}.") for name in frozen):
                    raise ValueError(
                        f"phases.{number}.unfreeze: {part} is in no part of model.freeze: {frozen}"
                    )
        return self
