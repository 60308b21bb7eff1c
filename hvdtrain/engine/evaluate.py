"""Evaluation: loss and accuracy over every image of the validation set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch.nn import functional

from hvdtrain import activity
from hvdtrain.engine.mixing import Batch
from hvdtrain.engine.step import SUMS, State, sums_of
from hvdtrain.engine.views import mean_logits
from hvdtrain.errors import DataError


@torch.no_grad()
def evaluate(state: State, batches: Iterable[Batch], expected: int) -> dict[str, float]:
    """Loss, top1 and top5 (0–1), the same on all ranks; each image is counted once on one rank.

    Uses the averaged weights, if the run keeps them, and the mean over the views that the run asks for. The
    activity must count images. Raises DataError if the number of images counted is not `expected`.
    """
    with _as_ever(state):
        return _evaluate(state, batches, expected)


def _as_ever(state: State) -> AbstractContextManager[object]:
    """A context without compiled code, which would be compiled anew for evaluations."""
    if state.compiled is None:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _evaluate(state: State, batches: Iterable[Batch], expected: int) -> dict[str, float]:
    average_buffers(state)
    state.model.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=state.settings.device)
    seen = 0
    network = partial(state.forward, averaged=True)
    for batch in batches:
        activity.beat()
        logits = mean_logits(network, batch.images, state.settings.val_views)
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        loss = torch.dot(losses, batch.weights)
        sums += sums_of(logits, loss, batch.labels, batch.weights)
        seen += len(batch.labels) * state.comm.size
        activity.step(min(seen, expected))
    loss_sum, top1, top5, count = state.comm.sum_(sums, "evaluate").tolist()
    if round(count) != expected:
        raise DataError(f"evaluation counted {count:.0f} images, expected exactly {expected}")
    return {"loss": loss_sum / count, "top1": top1 / count, "top5": top5 / count}


def rank_buffers(state: State) -> list[torch.Tensor]:
    """The batch-norm statistics, and their averages over time: in training each rank has its own."""
    named = {name: b for name, b in state.model.named_buffers() if b.is_floating_point()}
    buffers = [*named.values()]
    if state.ema is not None:
        # Averaging over ranks and over time are linear: their order does not matter.
        buffers += [state.ema.tensors[name] for name in named if name in state.ema.tensors]
    return buffers


def average_buffers(state: State) -> None:
    """Average the batch-norm statistics over ranks; in training each rank keeps its own."""
    buffers = rank_buffers(state)
    if state.comm.size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    state.comm.sum_(flat, "buffers").div_(state.comm.size)
    set_buffers(buffers, flat)


def set_buffers(buffers: list[torch.Tensor], flat: torch.Tensor) -> None:
    """Give `buffers` the values of `flat` [n], one after the other."""
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
