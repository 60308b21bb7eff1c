"""The training step: forward, backward, reduce, update."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from hvdtrain import activity
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.config.train import Precision, ValViews
from hvdtrain.engine.erasing import Erasing
from hvdtrain.engine.global_norm import GlobalNorms
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Batch, Mixing, Part
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.reducer import Reducer, square
from hvdtrain.engine.teacher import Teacher
from hvdtrain.engine.weight_meter import WeightMeter
from hvdtrain.optim import UpdateByGroup, set_rates
from hvdtrain.optim.agc import AdaptiveClipping
from hvdtrain.optim.clip import clip_
from hvdtrain.optim.ema import Ema
from hvdtrain.optim.lookahead import Lookahead
from hvdtrain.optim.muon import Muon

SUMS = ("loss", "top1", "top5", "count")
"""Names of the sums that `train_step` returns and `evaluate` adds up, in order."""


@dataclass(frozen=True)
class StepSettings:
    """What a step needs and training does not change; per rank."""

    device: torch.device
    autocast: torch.dtype | None = None
    """Type of the forward pass; None: fp32."""
    loss: Loss = field(default_factory=Loss)
    clip_norm: float | None = None
    agc: AdaptiveClipping | None = None
    static_loss_scale: float | None = None
    """None: dynamic, if there is a loss scale at all."""
    erasing: Erasing = field(default_factory=Erasing)
    mixing: Mixing = field(default_factory=Mixing)
    val_views: ValViews = "one"
    seed: int = 0


class Statistics:
    """A copy of a model's buffers, which a forward pass changes before the update is sure."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copies: list[torch.Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they are."""
        if len(self._copies) != len(buffers := list(self._model.buffers())):
            self._copies = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values that were kept last."""
        for buffer, copy in zip(self._model.buffers(), self._copies, strict=False):
            buffer.copy_(copy)


@dataclass
class State:
    """What training changes, with the settings and ranks it depends on; one per rank."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    reducer: Reducer
    scaler: torch.amp.GradScaler
    comm: Comm
    settings: StepSettings
    ema: Ema | None = None
    teacher: Teacher | None = None
    """From whose outputs the model learns, too; it never changes."""
    norms: GlobalNorms | None = None
    """If the batch norms use statistics of all ranks."""
    lookahead: Lookahead | None = None
    compiled: set[tuple[int, ...]] | None = None
    """The batches for which the model is compiled; None: it is not to be."""
    noise: NoiseMeter = field(default_factory=lambda: NoiseMeter(every=0, parts=1))
    weights: WeightMeter | None = None
    """On rank 0, if the run measures how its weights move."""
    progress: Progress = field(default_factory=Progress)
    gradient_norm: torch.Tensor | None = None
    """L2 norm of the global gradient before clipping, on the device, of the last step with `norm`."""
    skipped: torch.Tensor | None = None
    """Updates skipped since the start because gradients were not finite; on the device. None
    before the first update with a loss scale."""
    updating: bool = False
    """An update has begun and is not complete: the state is that of no step."""
    update_group: UpdateByGroup = field(init=False)
    statistics: Statistics = field(init=False)
    """Of batch norm, before the step that is being made."""

    def __post_init__(self) -> None:
        self.statistics = Statistics(self.model if self.comm.size > 1 else nn.Module())
        self.update_group = UpdateByGroup(self.optimizer, [g.params for g in self.reducer.groups])

    @property
    def needs_all_gradients(self) -> bool:
        """Whether the update of a parameter depends on the gradients of others, or on other ranks."""
        settings = self.settings
        clipped = settings.clip_norm is not None or settings.agc is not None
        shared = isinstance(self.optimizer, Muon) and self.optimizer.ranks is not None
        return clipped or shared or self.scaler.is_enabled()

    def forward(self, images: torch.Tensor, *, averaged: bool = False) -> torch.Tensor:
        """Logits [N, classes] in fp32, computed in the run's precision; `averaged`: with the
        averaged weights, if the run keeps them."""
        if self.norms is not None:
            self.norms.begin()
        with self._autocast():
            logits: torch.Tensor
            if averaged and self.ema is not None:
                logits = torch.func.functional_call(self.model, self.ema.tensors, (images,))
            else:
                logits = self.model(images)
        return logits.float()

    def losses(self, logits: torch.Tensor, part: Part) -> torch.Tensor:
        """What is minimised in training, of each image of `part` [n], with the teacher's share if there
        is one; from `logits` [n, classes]."""
        own = self.settings.loss.of_each(logits, part)
        if self.teacher is None:
            return own
        with torch.no_grad(), self._autocast():
            taught = self.teacher.network(part.images)
        return self.teacher.with_share(own, logits, taught.float())

    def _autocast(self) -> torch.autocast:
        device, autocast = self.settings.device, self.settings.autocast
        return torch.autocast(device.type, autocast, enabled=autocast is not None)

    def refuse_step(self) -> None:
        """In place of a step: let the others' sums of it end with SumRefused, on all ranks."""
        if self.norms is not None:  # they wait for the first layer's statistics
            self.norms.refuse()
        else:
            self.reducer.refuse()


def resolve_precision(cfg: Config, device: torch.device) -> torch.dtype | None:
    """Autocast type of `train.precision` on `device`; None for fp32."""
    return autocast_type(cfg.train.precision, device)


def autocast_type(wanted: Precision, device: torch.device) -> torch.dtype | None:
    """The same for a value of `train.precision`."""
    if wanted == "auto":
        if device.type != "cuda":
            return None
        # Cards before Ampere only emulate bf16, more slowly than fp32.
        own = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if own else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def train_step(
    state: State,
    batch: Batch,
    lr: float,
    momentum: float,
    *,
    norm: bool = False,
    done: float = 0.0,
) -> torch.Tensor:
    """Make one update from this rank's share of the global batch; returns this rank's SUMS [4].

    `norm`: also compute the norm of the gradient. `done`: the share (0-1) of the run that is trained
    after this step, for slow weights. The loss is the mean over the global batch; padding has
    weight 0. The order is the same on every rank: all gradients arrive, the loss scale
    is undone, gradients are clipped, weights updated, then averaged. With a loss scale, an update
    with a gradient that is not finite is skipped. If no part of the update needs all gradients at
    once, each group's parameters are updated while later groups are still being summed.
    """
    reducer = state.reducer
    measured = state.noise.due(state.progress.step)
    _seed(state)
    state.statistics.keep()
    if state.weights is not None:
        state.weights.before_update()
    reducer.start_step(measure=measured)
    sums = backward(state, batch)
    set_rates(state.optimizer, lr, momentum)
    together = measured or norm or state.needs_all_gradients or state.comm.size == 1
    reducer.finish(None if together else partial(_update_group, state))
    if measured:
        _measure_noise(state, sums[:, -1], len(batch.labels) * state.comm.size)
    if norm:
        state.gradient_norm = _big_square(state).sqrt() / _loss_scale(state)
    state.updating = True
    if together:
        update(state)
    if state.lookahead is not None:
        state.lookahead.after_update(state.progress.step + 1, done)
    average(state)
    if state.weights is not None:
        state.weights.after_update()
    state.progress, state.updating = state.progress.after_step(), False
    return sums.sum(dim=0)


def _update_group(state: State, number: int) -> None:
    state.updating = True
    state.update_group(number)


def _seed(state: State) -> None:
    """Seed torch's generators from (seed, rank, step), so that a resumed run draws the same dropout
    masks."""
    key = f"{state.settings.seed}/{state.comm.rank}/{state.progress.step}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    torch.default_generator.manual_seed(number)
    if state.settings.device.type == "cuda":
        torch.cuda.default_generators[state.settings.device.index or 0].manual_seed(number)


def backward(state: State, batch: Batch) -> torch.Tensor:
    """Forward and backward of all micro-batches; returns the SUMS of each, [accumulate, 4].

    The gradients may still be in flight: `Reducer.finish` waits for them.
    """
    state.model.train()
    clock, sums = state.reducer.clock, []
    settings, epoch = state.settings, state.progress.position.epoch
    images = settings.erasing.erased(batch.images, batch.copies, epoch)
    for part in settings.mixing.parts(batch, images, state.reducer.accumulate, epoch):
        activity.beat()
        clock.forward.start()
        logits = state.forward(part.images)
        loss = torch.dot(state.losses(logits, part), part.weights)
        clock.forward.stop()
        state.reducer.start_backward()
        state.scaler.scale(loss * (state.reducer.loss_scale / len(part.labels))).backward()
        state.reducer.end_backward()
        sums.append(sums_of(logits.detach(), loss.detach(), part.labels, part.weights))
    return torch.stack(sums)


def _measure_noise(state: State, counts: torch.Tensor, planned: int) -> None:
    """Record this step's gradients, still multiplied by the loss scale; `counts` [accumulate]."""
    squares = state.reducer.part_squares()
    if len(squares) == 1:
        counts = counts.sum(dim=0, keepdim=True)
    state.noise.add(squares, counts, _big_square(state), _loss_scale(state), planned)


def _big_square(state: State) -> torch.Tensor:
    return torch.stack([square(flat) for flat in state.reducer.flats()]).sum()


def _loss_scale(state: State) -> torch.Tensor:
    return state.scaler.scale(torch.ones((), device=state.settings.device))


def update(state: State) -> None:
    """Update the weights, and a dynamic loss scale, from the reduced gradients."""
    if state.settings.clip_norm is not None or state.settings.agc is not None:
        state.scaler.unscale_(state.optimizer)
    if state.settings.clip_norm is not None:
        clip_(state.reducer.flats(), state.settings.clip_norm)
    if state.settings.agc is not None:
        state.settings.agc()
    state.scaler.step(state.optimizer)  # skips the update if a gradient is not finite
    if state.scaler.is_enabled():
        # A static scale stays the same, so skipped updates cannot be seen from it.
        [skipped] = state.scaler._found_inf_per_device(state.optimizer).values()
        state.skipped = skipped if state.skipped is None else state.skipped + skipped
    state.scaler.update(state.settings.static_loss_scale)


def average(state: State) -> None:
    """Update the averaged weights, if the run keeps them."""
    if state.ema is not None:
        state.ema.update(state.progress.step)


def sums_of(
    logits: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """SUMS [4] of a batch: `logits` [n, classes], summed `loss`, `labels` and `weights` [n]."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).float() * weights[:, None]
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), weights.sum()])
