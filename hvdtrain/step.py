"""One update, one evaluation, and one worker's speed: the arithmetic on the device."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hvdtrain.comm import Comm
from hvdtrain.config import Config
from hvdtrain.errors import DataError
from hvdtrain.mixing import Batch, Mixing
from hvdtrain.optim import optimizer_tensors, set_rates
from hvdtrain.plan import Position
from hvdtrain.reducer import Reducer

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
    mixing: Mixing = field(default_factory=Mixing)
    position: Position = field(default_factory=Position)
    step: int = 0
    train_seconds: float = 0.0
    samples: int = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] in the run's precision."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits: torch.Tensor = self.model(images)
        return logits.float()


def resolve_precision(cfg: Config, device: torch.device) -> torch.dtype | None:
    """Autocast type of `train.precision` on `device`; None for fp32."""
    wanted = cfg.train.precision
    if wanted == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def train_step(state: State, batch: Batch, lr: float, momentum: float) -> torch.Tensor:
    """One update from this rank's share of the global batch; returns this rank's SUMS [4].

    The loss is the mean over the whole global batch, padding counted with weight 0.
    Order: all gradients arrive → loss scale undone → clip → update, the same on every rank.
    """
    reducer = state.reducer
    reducer.start_step()
    sums = _backward(state, batch)
    reducer.finish()
    set_rates(state.optimizer, lr, momentum)
    if state.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        clip_(reducer.flats(), state.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    return sums


def _backward(state: State, batch: Batch) -> torch.Tensor:
    state.model.train()
    parts = state.reducer.accumulate
    sums = torch.zeros(len(SUMS), device=state.device)
    for part in state.mixing.parts(batch, parts, state.position.epoch):
        logits = state.forward(part.images)
        loss = torch.dot(part.losses(logits, state.label_smoothing), part.weights)
        state.reducer.start_backward()
        state.scaler.scale(loss * (state.reducer.loss_scale / len(part.labels))).backward()
        sums += _sums(logits.detach(), loss.detach(), part.labels, part.weights)
    return sums


def clip_(flats: list[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their common L2 norm is at most `max_norm`; returns the norm."""
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([flat.norm() for flat in flats]))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for flat in flats:
        flat.mul_(factor)
    return norm


def _sums(
    logits: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == labels[:, None]).float() * weights[:, None]
    return torch.stack([loss, hits[:, 0].sum(), hits.sum(), weights.sum()])


@torch.no_grad()
def evaluate(state: State, batches: Iterable[Batch], expected: int) -> dict[str, float]:
    """Loss, top-1 and top-5 (0–1) over all `expected` images, each counted once on some rank.

    Raises DataError if the images counted are not `expected`.
    """
    average_buffers(state)
    state.model.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=state.device)
    for batch in batches:
        logits = state.forward(batch.images)
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = torch.dot(losses, batch.weights)
        sums += _sums(logits, loss, batch.labels, batch.weights)
    loss_sum, top1, top5, count = state.comm.sum_(sums, "evaluate").tolist()
    if round(count) != expected:
        raise DataError(f"evaluation counted {count:.0f} images, expected exactly {expected}")
    return {"loss": loss_sum / count, "top1": top1 / count, "top5": top5 / count}


def average_buffers(state: State) -> None:
    """Make the batch-norm statistics, which each rank keeps for itself, the mean over ranks."""
    buffers = [buffer for buffer in state.model.buffers() if buffer.is_floating_point()]
    if state.comm.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    state.comm.sum_(flat, "buffers").div_(state.comm.size)
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def calibrate(state: State, batch: Batch, *, min_steps: int = 6, min_s: float = 0.5) -> float:
    """Images/s of one worker alone: the same update without communication, the batch at hand.

    All ranks calibrate at the same time, so what they share of a machine is in the figure.
    The median of at least `min_steps` updates that take at least `min_s` seconds in all; the
    first, which allocates, does not count. Leaves no trace: every tensor and the loss scale are
    put back.
    """
    times: list[float] = []
    with restored(state):
        while len(times) <= min_steps or sum(times) < min_s:
            began = time.perf_counter()
            state.reducer.start_step(communicate=False)
            _backward(state, batch)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            _synchronize(state.device)
            times.append(time.perf_counter() - began)
    return len(batch.labels) / statistics.median(times[1:])


@contextlib.contextmanager
def restored(state: State) -> Iterator[None]:
    """Put back all that training changes when the context ends: weights, buffers, optimizer, loss
    scale, random numbers, position and counts."""
    tensors = [*state.model.state_dict().values()]
    tensors += optimizer_tensors(state.model, state.optimizer).values()
    saved = [tensor.clone() for tensor in tensors]
    scaler: dict[str, Any] = state.scaler.state_dict()
    rng = torch.get_rng_state()
    place = (state.position, state.step, state.samples, state.train_seconds)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        state.scaler.load_state_dict(scaler)
        torch.set_rng_state(rng)
        state.position, state.step, state.samples, state.train_seconds = place


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
