"""The loss of a network over fixed images as a function of its trained weights.

Weights, gradients and products are flat float64 vectors [n] on the network's device, in the order of
`model.named_parameters()`; only parameters that are trained count. The network itself computes in
float32 or float64, in evaluation mode: batch norm uses its running statistics, nothing is dropped.
Sums over images are in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain import activity
from hvdtrain.engine.mixing import Batch

SUMS = ("loss", "top1")
"""Names of what `NetworkLoss.means` returns."""


class NetworkLoss:
    """Mean cross entropy and accuracy of `model` over `images`.

    `images`: this rank's, iterated once for each evaluation; every weight is 1. `total`: images of all
    ranks that share an evaluation, by which every sum is divided: the values of these ranks are to be
    added up.
    """

    def __init__(
        self, model: nn.Module, images: Iterable[Batch], total: int, dtype: torch.dtype
    ) -> None:
        self.model = model.to(dtype).eval()
        self.images, self.total, self.dtype = images, total, dtype
        self.trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.shapes = {name: parameter.shape for name, parameter in self.trained.items()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self.device = next(model.parameters()).device

    def weights(self) -> Tensor:
        """The present weights, a copy."""
        return flat(list(self.trained.values()))

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Give the network `weights`, rounded to its type."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        for parameter, part in zip(self.trained.values(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))

    @torch.no_grad()
    def means(self) -> Tensor:
        """This rank's part of SUMS, divided by `total`: float64 [2]."""
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        for batch in self.images:
            activity.beat()
            logits = self._logits(batch)
            sums[0] += functional.cross_entropy(logits, batch.labels, reduction="sum")
            sums[1] += (logits.argmax(1) == batch.labels).sum()
        return sums / self.total

    def gradient(self) -> Tensor:
        """This rank's part of loss and gradient, float64 [1 + n]."""
        found = torch.zeros(1 + self.size, dtype=torch.float64, device=self.device)
        for _images, loss, gradient in self.batch_gradients():
            found[0] += loss
            found[1:] += gradient
        return found / self.total

    def batch_gradients(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each of this rank's batches: images, and loss [] and gradient [n], float64, summed over them."""
        parameters = list(self.trained.values())
        for batch in self.images:
            activity.beat()
            loss = self._loss(batch)
            yield len(batch.labels), loss.detach(), flat(gradients_of(loss, parameters))

    def product(self, vector: Tensor) -> Tensor:
        """This rank's part of Hessian × `vector` at the present weights, float64 [n]."""
        found = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        parameters = list(self.trained.values())
        pieces = vector.to(self.dtype).split([shape.numel() for shape in self.shapes.values()])
        along = [
            piece.view(shape) for piece, shape in zip(pieces, self.shapes.values(), strict=True)
        ]
        for batch in self.images:
            activity.beat()
            gradients = gradients_of(self._loss(batch), parameters, create_graph=True)
            slope = sum(
                torch.vdot(g.flatten(), v.flatten()) for g, v in zip(gradients, along, strict=True)
            )
            assert isinstance(slope, Tensor)
            if slope.requires_grad:  # the loss is not linear in the weights
                found += flat(gradients_of(slope, parameters))
        return found / self.total

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.model(batch.images.to(self.dtype))
        return logits.double()

    def _loss(self, batch: Batch) -> Tensor:
        return functional.cross_entropy(self._logits(batch), batch.labels, reduction="sum")


def gradients_of(
    value: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """The derivatives of `value`; zero for a parameter that it does not depend on."""
    found = torch.autograd.grad(value, parameters, create_graph=create_graph, allow_unused=True)
    return [
        torch.zeros_like(parameter) if each is None else each
        for each, parameter in zip(found, parameters, strict=True)
    ]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of `tensors` as one float64 vector."""
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
