"""The section `optimizer` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.config.fields import (
    Fraction,
    Identity,
    Machine,
    Momentum,
    NotNegative,
    Positive,
    PositiveFloat,
    Ratio,
    Section,
)

RateFactor = Annotated[float, Field(ge=1e-6, le=1e6)]
"""Of the rate of some parameters; their decay is divided by it, so that rate × decay stays."""


class Lookahead(Section):
    """Slow weights, which go a share of the way to the weights now and then and replace them."""

    every: Identity[Positive | None] = None
    """Updates from one such step to the next; the run ends with the slow weights. null: no slow weights."""
    share: Identity[Ratio | Annotated[list[Fraction], Field(min_length=2, max_length=2)]] = 0.5
    """Share of the way. [first, last]: first + (last − first) × (share of the run done)^`power`."""
    power: Identity[PositiveFloat] = 1.0
    """Exponent of a `share` that changes."""

    def share_at(self, done: float) -> float:
        """The share of the way when the share `done` (0-1) of the run's samples is trained."""
        if isinstance(self.share, list):
            first, last = self.share
            return float(first + (last - first) * done**self.power)
        return self.share

    @model_validator(mode="after")
    def _check(self) -> Lookahead:
        if self.every is None and (self.share, self.power) != (0.5, 1.0):
            raise ValueError("share and power need every, for example every: 5")
        if self.power != 1.0 and not isinstance(self.share, list):
            raise ValueError("power needs a share that changes, for example share: [1, 0.5]")
        return self


class Optimizer(Section):
    """How gradients become updates."""

    name: Identity[Literal["sgd", "lars", "lamb", "adamw", "muon"]] = "sgd"
    """The update rule. SGD is good up to a global batch of about 8192; beyond it use LARS or LAMB,
    which scale the rate of each layer. Muon makes the steps of convolutions and hidden matrices
    orthogonal. docs/reference/optimizers.md has the formulas."""
    momentum: Identity[Momentum] = 0.9
    """Momentum of SGD, LARS and Muon."""
    nesterov: Identity[bool] = True
    """Use Nesterov momentum in SGD and Muon."""
    betas: Identity[Annotated[list[Momentum], Field(min_length=2, max_length=2)]] = [0.9, 0.999]
    """Decay of the running means of the gradient and of its square, in LAMB and AdamW."""
    eps: Identity[Annotated[float, Field(ge=1e-30, allow_inf_nan=False)]] = 1e-8
    """Added to the root of the mean square, in LAMB and AdamW. LAMB's paper uses 1e-6."""
    trust_coefficient: Identity[PositiveFloat] = 0.001
    """LARS: norm of a layer's step at learning rate 1, divided by the norm of its weights."""
    lars_rate: Identity[Literal["inside", "outside"]] = "inside"
    """LARS: `inside`: the momentum buffer contains the rate, as in its paper and MLPerf. `outside`: the
    buffer is multiplied by the rate, as in timm and apex."""
    newton_schulz_steps: Identity[Annotated[int, Field(gt=0, le=100)]] = 5
    """Muon: iterations that make a step orthogonal; airbench94_muon uses 3."""
    normalize_filters: Identity[bool] = False
    """Muon: before each update, scale every kernel to the norm √(number of its filters), as airbench94_muon
    does; such kernels are not decayed."""
    other_rate: Identity[RateFactor] = 1.0
    """Muon: factor on the rate of norms and biases, which SGD updates."""
    other_momentum: Identity[Momentum] = 0.9
    """Muon: momentum of SGD for norms, biases and the classifier; no schedule changes it."""
    share_work: Machine[bool] = False
    """Muon: each rank makes its part of the steps orthogonal and gets the others' over the network; the
    result is the same. Worth it where that exchange takes less time than the computation."""
    classifier_rate: Identity[RateFactor] = 1.0
    """Factor on the rate of the classifier. Its weight decay is divided by it: rate × decay stays."""
    shift_rate: Identity[RateFactor] = 1.0
    """Factor on the rate of the shifts of batch norms; airbench94 has 64. Their weight decay, if they
    are decayed at all, is divided by it."""
    layer_decay: Identity[Ratio] = 1.0
    """Factor on the rate from each stage to the one below it: the classifier has the whole rate, the last
    stage this part of it, and so on down to the stem. For fine-tuning, 0.65 for example. 1: the same rate
    for all."""
    lookahead: Lookahead = Lookahead()
    weight_decay: Identity[NotNegative] = 1e-4
    """Weight decay, without norms, biases and gains. In SGD and LARS it is an L2 term in the gradient.
    In LAMB and AdamW it is decoupled: each step subtracts rate × decay × weight."""
    decay_norms_and_biases: Identity[bool] = False
    """Apply weight decay to norms, biases and gains as well, for comparison."""
    clip_norm: Identity[PositiveFloat | None] = None
    """Clip the averaged gradient to this global L2 norm. null: no clipping."""
    agc: Identity[PositiveFloat | None] = None
    """Adaptive gradient clipping: clip the gradient of each unit to this multiple of the norm of its
    weights; the classifier is not clipped. Use less for larger batches: 0.01 at 4096. null: no
    clipping."""
    agc_classifier_bias: Identity[bool] = False
    """With `agc`, clip the bias of the classifier as well, as DeepMind's code does."""

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.clip_norm is not None and self.agc is not None:
            raise ValueError("clip_norm and agc both clip the gradient: set one of them to null")
        if self.agc is None and self.agc_classifier_bias:
            raise ValueError("agc_classifier_bias needs agc, for example agc: 0.01")
        if self.name == "muon" and self.agc is not None:
            raise ValueError(
                "agc bounds a step by the gradient's norm, which Muon's step does not have: leave it out, "
                "or use clip_norm, which bounds what a gradient adds to the momentum"
            )
        for owner, names in ONLY.items():
            for name in names:
                changed = getattr(self, name) != type(self).model_fields[name].default
                if changed and self.name != owner:
                    raise ValueError(f"{name} needs name: {owner}, found {self.name}: leave it out")
        return self

    @property
    def first_momentum(self) -> float:
        """Decay of the running mean of gradients: momentum, or β1 of LAMB and AdamW."""
        return self.betas[0] if self.name in ("lamb", "adamw") else self.momentum


ONLY = {
    "lars": ("lars_rate",),
    "muon": (
        "newton_schulz_steps",
        "normalize_filters",
        "other_rate",
        "other_momentum",
        "share_work",
    ),
}
"""Settings that only one optimizer has."""
