"""One update, one evaluation, and one worker's speed: the arithmetic on the device."""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.mixing import Batch, Mixing
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.reducer import Reducer, square
from hvdtrain.engine.stopwatch import StepClock
from hvdtrain.errors import DataError
from hvdtrain.optim import UpdateByGroup, optimizer_tensors, set_rates
from hvdtrain.optim.agc import AdaptiveClipping
from hvdtrain.optim.clip import clip_
from hvdtrain.optim.ema import Ema
from hvdtrain.plan.epochs import Position

SUMS = ("loss", "top1", "top5", "count")
"""What the vectors of sums of `train_step` and `evaluate` hold, in order."""


@dataclass
class State:
    """All that training changes, and what it needs to change it; one per rank."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    reducer: Reducer
    scaler: torch.amp.GradScaler
    comm: Comm
    device: torch.device
    autocast: torch.dtype | None
    label_smoothing: float
    clip_norm: float | None
    agc: AdaptiveClipping | None = None
    static_loss_scale: float | None = None
    ema: Ema | None = None
    noise: NoiseMeter = field(default_factory=lambda: NoiseMeter(every=0, parts=1))
    mixing: Mixing = field(default_factory=Mixing)
    seed: int = 0
    position: Position = field(default_factory=Position)
    step: int = 0
    train_seconds: float = 0.0
    samples: int = 0
    gradient_norm: torch.Tensor | None = None
    """L2 norm of the last global gradient that was asked for, before clipping, on the device."""
    skipped: torch.Tensor | None = None
    """Updates left out since the start, as gradients were not finite; on the device, None before
    the first update with a loss scale."""

    def __post_init__(self) -> None:
        self.update_group = UpdateByGroup(self.optimizer, [g.params for g in self.reducer.groups])

    @property
    def needs_all_gradients(self) -> bool:
        """Whether an update depends on more than its own parameter's gradient."""
        return self.clip_norm is not None or self.agc is not None or self.scaler.is_enabled()

    def forward(self, images: torch.Tensor, *, averaged: bool = False) -> torch.Tensor:
        """Logits [N, classes] in the run's precision; `averaged`: by the EMA if there is one."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits: torch.Tensor
            if averaged and self.ema is not None:
                logits = torch.func.functional_call(self.model, self.ema.tensors, (images,))
            else:
                logits = self.model(images)
        return logits.float()


def resolve_precision(cfg: Config, device: torch.device) -> torch.dtype | None:
    """Autocast type of `train.precision` on `device`; None for fp32."""
    wanted = cfg.train.precision
    if wanted == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def train_step(
    state: State, batch: Batch, lr: float, momentum: float, *, norm: bool = False
) -> torch.Tensor:
    """One update from this rank's share of the global batch; returns this rank's SUMS [4].

    `norm`: find the norm of the gradient, too. The loss is the mean over the whole global batch,
    padding counted with weight 0. Order: all gradients arrive → loss scale undone → clip → update →
    average, the same on every rank. An update whose gradients are not all finite is skipped where
    there is a loss scale. Where nothing looks at all gradients together, each group's parameters
    are updated while later groups are still summed.
    """
    reducer = state.reducer
    measured = state.noise.due(state.step)
    _seed(state)
    reducer.start_step(measure=measured)
    sums = _backward(state, batch)
    set_rates(state.optimizer, lr, momentum)
    together = measured or norm or state.needs_all_gradients or state.comm.size == 1
    reducer.finish(None if together else state.update_group)
    if measured:
        _measure_noise(state, sums[:, -1], len(batch.labels) * state.comm.size)
    if norm:
        state.gradient_norm = _big_square(state).sqrt() / _loss_scale(state)
    if together:
        _update(state)
    _average(state)
    state.step += 1
    return sums.sum(dim=0)


def _seed(state: State) -> None:
    """Give dropout and the like numbers that depend on (seed, rank, step) alone, so that a resumed
    run draws the same ones."""
    key = f"{state.seed}/{state.comm.rank}/{state.step}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    torch.default_generator.manual_seed(number)
    if state.device.type == "cuda":
        torch.cuda.default_generators[state.device.index or 0].manual_seed(number)


def _backward(state: State, batch: Batch) -> torch.Tensor:
    """All micro-batches, their gradients on the way; SUMS of each, [accumulate, 4]."""
    state.model.train()
    clock, sums = state.reducer.clock, []
    for part in state.mixing.parts(batch, state.reducer.accumulate, state.position.epoch):
        clock.forward.start()
        logits = state.forward(part.images)
        loss = torch.dot(part.losses(logits, state.label_smoothing), part.weights)
        clock.forward.stop()
        state.reducer.start_backward()
        state.scaler.scale(loss * (state.reducer.loss_scale / len(part.labels))).backward()
        state.reducer.end_backward()
        sums.append(_sums(logits.detach(), loss.detach(), part.labels, part.weights))
    return torch.stack(sums)


def _measure_noise(state: State, counts: torch.Tensor, planned: int) -> None:
    """Note this step's gradients, which still carry the loss scale; `counts` [accumulate]."""
    squares = state.reducer.part_squares()
    if len(squares) == 1:
        counts = counts.sum(dim=0, keepdim=True)
    state.noise.add(squares, counts, _big_square(state), _loss_scale(state), planned)


def _big_square(state: State) -> torch.Tensor:
    return torch.stack([square(flat) for flat in state.reducer.flats()]).sum()


def _loss_scale(state: State) -> torch.Tensor:
    return state.scaler.scale(torch.ones((), device=state.device))


def _update(state: State) -> None:
    """Weights and loss scale from the gradients as they are."""
    if state.clip_norm is not None or state.agc is not None:
        state.scaler.unscale_(state.optimizer)
    if state.clip_norm is not None:
        clip_(state.reducer.flats(), state.clip_norm)
    if state.agc is not None:
        state.agc()
    state.scaler.step(state.optimizer)  # which leaves the update out if not all is finite
    if state.scaler.is_enabled():
        # A static scale does not change, so it does not tell.
        [left_out] = state.scaler._found_inf_per_device(state.optimizer).values()
        state.skipped = left_out if state.skipped is None else state.skipped + left_out
    state.scaler.update(state.static_loss_scale)


def _average(state: State) -> None:
    if state.ema is not None:
        state.ema.update(state.step)


def _sums(
    logits: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).float() * weights[:, None]
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), weights.sum()])


@torch.no_grad()
def evaluate(state: State, batches: Iterable[Batch], expected: int) -> dict[str, float]:
    """Loss, top-1 and top-5 (0–1) over all `expected` images, each counted once on some rank; of
    the averaged weights, if the run keeps them.

    Raises DataError if the images counted are not `expected`.
    """
    average_buffers(state)
    state.model.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=state.device)
    for batch in batches:
        logits = state.forward(batch.images, averaged=True)
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = torch.dot(losses, batch.weights)
        sums += _sums(logits, loss, batch.labels, batch.weights)
    loss_sum, top1, top5, count = state.comm.sum_(sums, "evaluate").tolist()
    if round(count) != expected:
        raise DataError(f"evaluation counted {count:.0f} images, expected exactly {expected}")
    return {"loss": loss_sum / count, "top1": top1 / count, "top5": top5 / count}


def average_buffers(state: State) -> None:
    """Make the batch-norm statistics, which each rank keeps for itself, the mean over ranks."""
    named = {name: b for name, b in state.model.named_buffers() if b.is_floating_point()}
    buffers = [*named.values()]
    if state.ema is not None:
        # The average over ranks of averages over time is that of the averages over ranks.
        buffers += [state.ema.tensors[name] for name in named if name in state.ema.tensors]
    if state.comm.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    state.comm.sum_(flat, "buffers").div_(state.comm.size)
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


class WorkerSpeed(NamedTuple):
    """One worker without communication."""

    images_per_second: float
    backward_s: float
    """Of one update: its last backward pass, the time in which gradients can be sent."""


def calibrate(state: State, batch: Batch, *, min_steps: int = 6, min_s: float = 0.5) -> WorkerSpeed:
    """Speed of one worker alone: the same update without communication, the batch at hand.

    All ranks calibrate at the same time, so what they share of a machine is in the figure.
    The median of at least `min_steps` times, which take at least `min_s` seconds in all; the first,
    in which memory is allocated and kernels are chosen, does not count. Leaves no trace: every
    tensor and the loss scale are put back.
    """
    # Queued one behind the other as in training, so that a GPU does not wait for the host.
    updates = 4 if state.device.type == "cuda" else 1
    times: list[float] = []
    first_s = 0.0
    with restored(state):
        backward = state.reducer.clock.backward
        while len(times) <= min_steps or sum(times[1:]) * updates < min_s:
            began = time.perf_counter()
            for _ in range(updates):
                state.reducer.start_step(communicate=False)
                _backward(state, batch)
                _update(state)
                _average(state)
            _synchronize(state.device)
            times.append((time.perf_counter() - began) / updates)
            if len(times) == 1:
                first_s = backward.total_s
        passes = (len(times) - 1) * updates * state.reducer.accumulate
        backward_s = (backward.total_s - first_s) / passes
    return WorkerSpeed(len(batch.labels) / statistics.median(times[1:]), backward_s)


@contextlib.contextmanager
def restored(state: State) -> Iterator[None]:
    """Put back all that training changes when the context ends: weights, buffers, optimizer, loss
    scale, averages, random numbers, position and counts. Meanwhile no noise scale is measured, and
    another clock runs."""
    tensors = [*state.model.state_dict().values()]
    tensors += optimizer_tensors(state.model, state.optimizer).values()
    tensors += state.ema.tensors.values() if state.ema is not None else ()
    saved = [tensor.clone() for tensor in tensors]
    scaler: dict[str, Any] = state.scaler.state_dict()
    rng = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(state.device) if state.device.type == "cuda" else None
    noise, state.noise = state.noise, NoiseMeter(every=0, parts=1)
    clock, state.reducer.clock = state.reducer.clock, StepClock(state.device)
    place = (state.position, state.step, state.samples, state.train_seconds, state.skipped)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        state.scaler.load_state_dict(scaler)
        torch.set_rng_state(rng)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, state.device)
        state.noise = noise
        state.reducer.clock = clock
        state.position, state.step, state.samples, state.train_seconds, state.skipped = place


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
