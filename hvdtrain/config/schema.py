"""The schema of the configuration: all fields, their values and their meaning."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hvdtrain.config.checkpoint import Checkpoint
from hvdtrain.config.data import Data
from hvdtrain.config.fields import (
    MAX_EPOCHS,
    Identity,
    Machine,
    PathText,
    Planned,
    Positive,
    PositiveFloat,
    Section,
)
from hvdtrain.config.hub_address import WeightsText
from hvdtrain.config.metrics import Metrics
from hvdtrain.config.optimizer import Optimizer
from hvdtrain.config.schedule import LearningRate, Phase
from hvdtrain.config.train import Train

GROUP_MB = 16.0
"""Default of `comm.group_mb`."""

NO_LOSS_SCALE = (
    "comm.compression: powersgd cannot be had with train.precision: fp16, whose loss scale changes and skips "
    "updates, so that errors kept from step to step would not fit: set precision to bf16 or fp32"
)

__all__ = [
    "GROUP_MB",
    "Checkpoint",
    "Comm",
    "Config",
    "Data",
    "Expected",
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

    name: Identity[str] = "resnet50"
    """A name that `hvdtrain models` lists, or `timm:NAME` or `torchvision:NAME` if that library is
    installed."""
    num_classes: Identity[Annotated[int, Field(gt=0, le=2**24)] | None] = None
    """Number of outputs of the classifier. null: the number of classes in the dataset."""
    zero_gamma: Identity[bool] = True
    """Initialize the last batch-norm scale of every residual block with 0 (Goyal et al. 2017); in
    normalizer-free networks the skip gain. No effect on networks without residual blocks."""
    width: Identity[Annotated[int, Field(gt=0, le=100)] | None] = None
    """Width factor of wide ResNets. null: the network's default."""
    pool: Identity[Literal["avg", "concat"] | None] = None
    """Pooling before the classifier: the mean of each channel (`avg`), or its maximum and its mean
    (`concat`). null: the network's default."""
    dropout: Identity[Annotated[float, Field(ge=0, lt=1)] | None] = None
    """Share of the pooled features that are set to 0 in training. null: the network's default, which is
    0 except for NFNets."""
    stochastic_depth: Identity[Annotated[float, Field(ge=0, lt=1)] | None] = None
    """Residual branches are dropped at random for each image, in block i of L with probability value ×
    i / L. null: the network's default, which is 0 except for NFNets."""
    stochastic_depth_rescale: Identity[bool] = True
    """Divide residual branches that are not dropped by the probability that they are kept, which keeps
    their mean. false: leave them as they are, as in the published NFNets."""
    blurpool: Identity[bool] = False
    """Blur the inputs of strided convolutions."""
    padding: Identity[Literal["torch", "same"]] = "torch"
    """Padding of strided convolutions in NFNets: torch's, or TensorFlow's (`same`), with which their
    published weights were trained. They differ at even image sizes."""
    init: Identity[Literal["fan_out", "fan_in"] | None] = None
    """First weights of convolutions: He's normal with the deviation √(2/fan_out) or √(2/fan_in). null:
    the network's default, which is fan_out except for NF networks, airbench94 and vgg_sigmoid, which
    have rules of their own."""
    batch_norm: Identity[Literal["worker", "global"]] = "worker"
    """Images over which batch norm takes its statistics in training: those of one worker in one forward
    pass (`worker`), or of all workers (`global`), which costs two small sums over workers a layer, one
    in the forward and one in the backward pass."""
    weights: Identity[WeightsText | None] = None
    """Start from these weights: a file (safetensors or torch), a run, or a repository of the Hugging
    Face hub: timm:resnet50.a1_in1k, hf:ORG/NAME, either with @REVISION. The number of classes may
    differ, and an NF-ResNet takes a ResNet's weights. See docs/reference/models.md."""
    freeze: Identity[list[str]] = []
    """Parts of the model that are not trained, for example [stem, stages.0]. Their batch-norm
    statistics do not change either."""

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.init is not None and self.weights is not None:
            raise ValueError(
                "init has no effect with weights, which replace all convolutions: leave init out"
            )
        return self


Engine = Literal["auto", "horovod", "torch"]


class Comm(Section):
    """The exchange of gradients between ranks."""

    engine: Machine[Engine] = "auto"
    """What carries the exchange. `horovod`. `torch`: torch.distributed, with NCCL on GPUs and gloo on CPUs;
    it needs no compiler. `auto`: what the launcher of the ranks can start, Horovod under mpirun, horovodrun
    and `hvdtrain launch`, torch under torchrun; under srun Horovod if it is installed, else torch."""
    tune: Machine[Literal["measure", "fixed"]] = "fixed"
    """`measure`: exchange test data for a few seconds at the start, then choose `group_mb` if it is null
    and `compression` if it is auto. tuning.json keeps the choice for a resumed run. `fixed`: the same
    settings in every run, so that equal runs give bit-identical weights."""
    compression: Planned[Literal["none", "fp16", "bf16", "powersgd", "auto"]] = "none"
    """What is sent of the gradients. `none`: all, in their own number type. `fp16`: half the bytes, rounded.
    `bf16`: as many, rounded more, but summed in fp32 and without overflow.
    `powersgd`: a low-rank approximation, with a ResNet-50 a 66th of the bytes; what it leaves out is
    sent in later steps, see docs/explanation/compression.md. It compresses on a single rank, too. `auto`:
    fp16 if `tune: measure` finds that it saves at least a tenth of the time."""
    powersgd_rank: Planned[Annotated[int, Field(ge=1, le=8)]] = 4
    """Rank of the approximation with `compression: powersgd`. Twice the rank is nearer to the gradient, and
    twice the bytes."""
    group_mb: Machine[Annotated[float, Field(gt=0, le=2**16)] | None] = None
    """Gradients are exchanged in groups of about this size in MiB, while the backward pass is still
    running. null: 16, or what `tune: measure` chooses."""
    link_gbit: Machine[PositiveFloat | None] = None
    """Speed of the network in Gbit/s per host, used to compute the highest possible efficiency; up to 5,
    Open MPI sums on several hosts in a ring. null: the speed that the kernel reports for the interface
    with the most traffic, and for the ring the card of the host of `hvdtrain launch`."""
    interface: Machine[str] = "auto"
    """Network between the hosts, used by all libraries: the name of an interface, or its subnet
    (10.0.0.0/24) if names differ between hosts. auto: the interface that leads to the other hosts."""
    preflight: Machine[bool] = True
    """Compare all ranks and measure their links before the first step; takes a few seconds, see
    docs/reference/preflight.md. false: skip it."""

    @property
    def group_bytes(self) -> float:
        """Size of the groups in bytes."""
        return (self.group_mb or GROUP_MB) * 2**20

    @field_validator("interface")
    @classmethod
    def _check_interface(cls, value: str) -> str:
        if "/" in value:
            try:
                ip_network(value, strict=False)
            except ValueError:
                raise ValueError("expected a subnet such as 10.0.0.0/24") from None
        elif not re.fullmatch(r"[\w.@:-]{1,15}", value):
            raise ValueError("expected auto, the name of an interface, or a subnet") from None
        return value

    @model_validator(mode="after")
    def _check(self) -> Comm:
        if self.compression == "auto" and self.tune == "fixed":
            raise ValueError(
                "compression: auto needs tune: measure; otherwise set none, fp16, bf16 or powersgd"
            )
        return self


class Expected(Section):
    """The dataset that a recipe was made for: what `plan`, `scaling` and `doctor` take where the dataset
    is not at hand. A run, and a plan of a dataset that is there, counts and takes any other number."""

    images: Machine[Positive | None] = None
    """Number of training images, where neither `data.train_size` nor the dataset says it."""
    classes: Machine[Annotated[int, Field(gt=0, le=2**24)] | None] = None
    """Number of classes, where neither `model.num_classes` nor the dataset says it."""


class Config(Section):
    """The whole configuration: name, seed and output of the run, and the sections below."""

    name: Planned[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]] = "run"
    """Name of the run; its directory is named after it."""
    seed: Identity[Annotated[int, Field(ge=0, lt=2**32)]] = 0
    """Seed of initial weights, sample order and augmentation."""
    output: Machine[PathText] = "runs"
    """Folder in which the run directory `<name>-<time>/` is created."""
    expected: Expected = Expected()
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    lr: LearningRate = LearningRate()
    phases: Annotated[list[Phase], Field(min_length=1, max_length=1000)]
    """The training phases, in order."""
    train: Train = Train()
    comm: Comm = Comm()
    checkpoint: Checkpoint = Checkpoint()
    metrics: Metrics = Metrics()

    @property
    def planned_images(self) -> int | None:
        """Number of training images as far as the config says it."""
        return self.data.train_size or self.expected.images

    @property
    def planned_classes(self) -> int | None:
        """Number of classes as far as the config says it."""
        return self.model.num_classes or self.expected.classes

    @model_validator(mode="after")
    def _check(self) -> Config:
        if (epochs := sum(phase.epochs for phase in self.phases)) > MAX_EPOCHS:
            raise ValueError(f"phases: {epochs:,} epochs in all; expected at most {MAX_EPOCHS:,}")
        frozen = list(self.model.freeze)
        self._check_pairs()
        if self.comm.compression == "powersgd" and self.train.precision == "fp16":
            raise ValueError(NO_LOSS_SCALE)
        for number, phase in enumerate(self.phases):
            pad = self.data.crop_padding
            if pad and pad >= (side := phase.smallest_image_size):
                raise ValueError(
                    f"data.crop_padding: {pad} is too much for the images of {side} px in "
                    f"phases.{number}: use at most {side - 1}"
                )
            if phase.rect_val and self.data.val_resize == "stretch":
                raise ValueError(
                    f"phases.{number}.rect_val: true keeps the aspect of images, data.val_resize: "
                    "stretch does not: use one of them"
                )
            frozen += phase.freeze
            for part in phase.unfreeze:
                if not any(f"{part}.".startswith(f"{name}.") for name in frozen):
                    raise ValueError(
                        f"phases.{number}.unfreeze: {part} is not frozen: model.freeze and earlier phases "
                        f"have {frozen}"
                    )
        return self

    def _check_pairs(self) -> None:
        data = self.data
        odd = {
            f"repeats: {data.repeats}": data.repeats > 1,
            f"random_erasing: {data.random_erasing:g}": data.random_erasing > 0,
            "on_bad: mask": data.on_bad == "mask",
        }
        for setting, given in odd.items():
            if given and self.train.mix_partner == "doubled":
                raise ValueError(
                    f"data.{setting} cannot be had with train.mix_partner: doubled: use neighbour or random"
                )
        if self.model.batch_norm == "global" and self.train.compile != "none":
            raise ValueError(
                f"train.compile: {self.train.compile} cannot be had with model.batch_norm: global, whose layers "
                "exchange statistics: use one of them"
            )
