"""Evaluation: loss and accuracy over every image of the validation set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch.nn import functional

from hvdtrain import activity
from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.mixing import Batch
from hvdtrain.engine.step import SUMS, State, sums_of
from hvdtrain.engine.views import mean_logits
from hvdtrain.errors import DataError

Watch = Callable[[Batch, torch.Tensor], None]
"""Called with each batch of this rank and its logits [n, classes]."""


@torch.no_grad()
def evaluate(
    state: State, batches: Iterable[Batch], expected: int, watch: Watch | None = None
) -> dict[str, float]:
    """Loss, top1 and top5 (0–1), the same on all ranks; each image is counted once on one rank.

    Uses the averaged weights, if the run keeps them, and the mean over the views that the run asks for. The
    activity must count images. Raises DataError if the number of images counted is not `expected`.
    """
    with _as_ever(state):
        return _evaluate(state, batches, expected, watch)


def _as_ever(state: State) -> AbstractContextManager[object]:
    """A context without compiled code, which would be compiled anew for evaluations."""
    if state.compiled is None:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _evaluate(
    state: State, batches: Iterable[Batch], expected: int, watch: Watch | None
) -> dict[str, float]:
    state.model.eval()
    network = partial(state.forward, averaged=True)
    with pooled_statistics(state):
        sums, seen = torch.zeros(len(SUMS), dtype=torch.float64, device=state.settings.device), 0
        usual: torch.Size | None = None
        for batch in batches:
            activity.beat()
            usual = usual or batch.images.shape
            with _kernels(chosen_by_trial=batch.images.shape == usual):
                logits = mean_logits(network, batch.images, state.settings.val_views)
            losses = functional.cross_entropy(logits, batch.labels, reduction="none")
            loss = torch.dot(losses, batch.weights)
            sums += sums_of(logits, loss, batch.labels, batch.weights)
            if watch is not None:
                watch(batch, logits)
            seen += len(batch.labels) * state.comm.size
            activity.step(min(seen, expected))
    loss_sum, top1, top5, count = state.comm.sum_(sums, "evaluate").tolist()
    if round(count) != expected:
        raise DataError(f"evaluation counted {count:.0f} images, expected exactly {expected}")
    return {"loss": loss_sum / count, "top1": top1 / count, "top5": top5 / count}


@contextlib.contextmanager
def _kernels(*, chosen_by_trial: bool) -> Iterator[None]:
    """cuDNN tries its kernels for each new shape, which takes longer than a few batches save: evaluation
    on rectangles has many shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and chosen_by_trial
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def rank_buffers(state: State) -> list[torch.Tensor]:
    """The batch-norm statistics, and their averages over time: in training each rank has its own."""
    return [*_named_buffers(state).values()]


def _named_buffers(state: State) -> dict[str, torch.Tensor]:
    named = {name: b for name, b in state.model.named_buffers() if b.is_floating_point()}
    averages = {} if state.ema is None else state.ema.tensors
    return {**named, **{f"average of {name}": averages[name] for name in named if name in averages}}


@contextlib.contextmanager
def pooled_statistics(state: State) -> Iterator[torch.Tensor | None]:
    """A context in which all ranks have the batch-norm statistics of all; then each has its own again.

    Gives this rank's own in a row, in the order of `rank_buffers`; None on one rank, or without any.
    Every rank must enter it.
    """
    named = _named_buffers(state)
    if state.comm.size == 1 or not named:
        yield None
        return
    buffers = [*named.values()]
    own = torch.cat([buffer.flatten() for buffer in buffers])
    set_buffers(buffers, _pooled(named, state.comm))
    try:
        yield own
    finally:
        set_buffers(buffers, own)


def _pooled(named: dict[str, torch.Tensor], comm: Comm) -> torch.Tensor:
    """The statistics of all ranks together, float64, in a row.

    Means are averaged. A variance is that of the union of equal parts: the mean of the parts' variances
    plus the variance of their means. Ranks that are alike keep their bits.
    """
    mean_of = {
        name: f"{name.removesuffix('var')}mean" for name in named if name.endswith("running_var")
    }
    flat = torch.cat([buffer.flatten() for buffer in named.values()]).double()
    sizes = [buffer.numel() for buffer in named.values()]
    parts = dict(zip(named, flat.split(sizes), strict=True))
    squares = [parts[mean].square() for mean in mean_of.values()]
    sums = comm.sum_(torch.cat([flat, *squares]), "buffers").div_(comm.size)
    parts = dict(zip(named, sums[: len(flat)].split(sizes), strict=True))
    left = sums[len(flat) :]
    for var, mean in mean_of.items():
        square, left = left.split([parts[mean].numel(), len(left) - parts[mean].numel()])
        parts[var] += (square - parts[mean].square()).clamp_(min=0.0)
    return sums[: len(flat)]


def set_buffers(buffers: list[torch.Tensor], flat: torch.Tensor) -> None:
    """Give `buffers` the values of `flat` [n], one after the other."""
    parts = flat.split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))
