"""Batch norm over the images of all ranks, `model.batch_norm: global` (SyncBN).

In training every layer adds up the moments of its input over the ranks, and in the backward pass the two
sums of its gradient. Every rank waits for each of these small sums. They have names of their own, so
gradients of other layers may be in flight at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.networks import no_batch_norm
from hvdtrain.errors import ConfigError


class GlobalNorms:
    """The sums over ranks of one model's batch norms, numbered in the order of the forward pass."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._first = torch.zeros(1, dtype=torch.float64)
        """Like the last first sum of a forward pass."""
        self._calls = 0
        self.active = True
        """False: every rank uses its own statistics, and nothing is exchanged."""

    def begin(self) -> None:
        """Call before each forward pass."""
        self._calls = 0

    def next_name(self) -> str:
        """The name of the next layer's sum; every rank gets the same."""
        self._calls += 1
        return _name(self._calls - 1)

    def sum_(self, tensor: Tensor, name: str) -> Tensor:
        """Sum over ranks, in place, and wait."""
        if name == _name(0):
            self._first = tensor
        return self._comm.sum_(tensor, name)

    def refuse(self) -> None:
        """In place of a step: let its first sum, and so the step, end with SumRefused on all ranks."""
        self._comm.refuse({_name(0): self._first})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which every rank uses its own statistics."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


def local_statistics(norms: GlobalNorms | None) -> contextlib.AbstractContextManager[None]:
    """A context in which ranks need nothing of each other in forward and backward passes."""
    return contextlib.nullcontext() if norms is None else norms.paused()


def share_batch_norm(model: nn.Module, comm: Comm, name: str) -> GlobalNorms | None:
    """Let the batch norms of `model` use statistics of all ranks; None on one rank, where they do.

    Raises ConfigError if the model, called `name`, has none, or one that computes something else too.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        raise ConfigError(no_batch_norm(name))
    for norm in norms:
        if type(norm).forward is not _BatchNorm.forward:
            raise ConfigError(
                f"model.batch_norm: global: {name} has layers of its own kind ({type(norm).__name__}): use worker"
            )
    if comm.size == 1:
        return None
    shared = GlobalNorms(comm)
    for norm in norms:
        norm.forward = partial(_forward, norm, shared)  # type: ignore[method-assign]
    return shared


def _name(number: int) -> str:
    return f"batch_norm.{number}"


def _forward(norm: _BatchNorm, shared: GlobalNorms, x: Tensor) -> Tensor:
    """`norm` of `x` [N, C, ...], with the statistics of all ranks in training."""
    if not (norm.training and shared.active):
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)
    name = shared.next_name()
    with torch.no_grad():
        mean, var, count = _statistics(x, shared, name)
        _track(norm, mean, var, count)
    normalised: Tensor = _Normalise.apply(
        x, norm.weight, norm.bias, mean, var, count, norm.eps, shared, name
    )  # type: ignore[no-untyped-call]
    return normalised


def _statistics(x: Tensor, shared: GlobalNorms, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (divided by the count) of each channel of all ranks' `x`, float64 [C], and the
    count of values of a channel, float64 []."""
    channels = x.shape[1]
    var, mean = torch.var_mean(x.to(_wide(x)), dim=_dims(x), correction=0)
    var, mean = var.double(), mean.double()
    own = x.numel() / channels
    sums = torch.cat([mean, var + mean.square(), torch.ones_like(mean[:1])]).mul_(own)
    shared.sum_(sums, name)
    count = sums[-1]
    mean = sums[:channels] / count
    var = (sums[channels:-1] / count - mean.square()).clamp_(min=0.0)
    return mean, var, count


def _track(norm: _BatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics towards a batch's, as torch's own batch norm does."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        momentum = 1.0 / float(norm.num_batches_tracked)
    unbiased = var * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


class _Normalise(torch.autograd.Function):
    """(x − mean)/√(var + eps)·weight + bias, where mean and var are those of all ranks' x.

    With x̂ the normalised input, L the loss and E the mean over all ranks, the gradient is
    weight/√(var + eps)·(∂L/∂y − E[∂L/∂y] − x̂·E[x̂·∂L/∂y]). Those of weight and bias are this rank's
    shares, which are summed with all other gradients.
    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        shared: GlobalNorms,
        name: str,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.shared, ctx.name = shared, name
        moments = mean.to(_wide(x)), var.to(_wide(x))
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(x, weight, bias, *moments, False, 0.0, eps, cudnn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, deviation, count = ctx.saved_tensors
        wide, dims, channels = _wide(x), _dims(x), x.shape[1]
        shape = [1, channels] + [1] * (x.dim() - 2)
        dy = gradient.to(wide)
        centred = x.to(wide) - mean.to(wide).view(shape)
        of_bias = dy.sum(dims)
        of_weight = (dy * centred).sum(dims)
        sums = torch.cat([of_bias, of_weight]).double()
        means = ctx.shared.sum_(sums, f"{ctx.name}.gradient") / count
        scale = deviation if weight is None else deviation * weight
        slope = -scale * deviation.square() * means[channels:]
        shift = -scale * means[:channels]
        dx = centred.mul_(slope.to(wide).view(shape)).add_(shift.to(wide).view(shape))
        dx = dx.addcmul_(dy, scale.to(wide).view(shape)).to(x.dtype)
        needed = ctx.needs_input_grad
        return (
            dx if needed[0] else None,
            (of_weight * deviation).to(weight.dtype) if needed[1] else None,
            of_bias.to(weight.dtype) if needed[2] else None,
            *[None] * 6,
        )


def _wide(x: Tensor) -> torch.dtype:
    """The type to compute in: fp32, or that of `x` if it has more digits."""
    return torch.promote_types(x.dtype, torch.float32)


def _dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]
