"""Measures the gradient noise scale from the gradients that training computes anyway."""

from __future__ import annotations

import torch

from hvdtrain.engine.noise_scale import NoiseScale


class NoiseMeter:
    """Records one row of sums on the device every `every` updates. The caller sums the `rows` of
    all ranks and passes the result to `take`.

    The small batch is a rank's with several ranks, else a micro-batch. Images of weight 0 do not
    count, so a short last batch is measured correctly.
    """

    def __init__(self, every: int, parts: int, scale: NoiseScale | None = None) -> None:
        self._every = every if parts > 1 else 0
        self.scale = scale or NoiseScale()
        self._rows: list[torch.Tensor] = []
        self._big_squares: list[float] = []

    def due(self, step: int) -> bool:
        """Whether update number `step` (the first is 0) is measured; the same on all ranks."""
        return self._every > 0 and step % self._every == 0

    def add(
        self,
        squares: torch.Tensor,
        counts: torch.Tensor,
        big_square: torch.Tensor,
        loss_scale: torch.Tensor,
        planned: int,
    ) -> None:
        """Record one update of this rank, without waiting for the device.

        `squares` [parts]: ‖·‖² of each part's share of the gradient; `counts` [parts]: images of
        each part; `big_square`: ‖·‖² of the reduced gradient. Every gradient is a sum over images
        times `loss_scale`, divided by `planned`, the global batch size.
        """
        factor = (planned / loss_scale.double()).square()
        counts = counts.double()
        used = counts > 0
        inverse = torch.where(used, 1 / counts.clamp(min=1), 0.0)
        sums = [(squares * factor * inverse.square()).sum(), inverse.sum(), counts.sum()]
        self._rows.append(torch.stack([*sums, used.sum().double(), big_square * factor]))

    def rows(self) -> torch.Tensor:
        """This rank's sums since the last call, [4 * measurements] float64 on the CPU."""
        rows = torch.stack(self._rows).cpu() if self._rows else torch.zeros(0, 5).double()
        self._rows, self._big_squares = [], rows[:, 4].tolist()
        return rows[:, :4].flatten()

    def take(self, sums: list[float]) -> float | None:
        """The noise scale in images; `sums`: the last `rows`, summed over all ranks."""
        merged = [sums[first : first + 4] for first in range(0, len(sums), 4)]
        for (square, inverse, images, parts), big in zip(merged, self._big_squares, strict=True):
            if parts and images:
                self.scale.add(square / parts, inverse / parts, big / images**2, images)
        return self.scale.images
