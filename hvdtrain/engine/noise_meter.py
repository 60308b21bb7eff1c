"""Measures the gradient noise scale of a run from the gradients that it computes anyway."""

from __future__ import annotations

import torch

from hvdtrain.engine.noise_scale import NoiseScale


class NoiseMeter:
    """Every `every` updates one row of this rank's sums, on the device. To be merged, the `rows` of
    all ranks are summed, with whatever else is, and handed to `take`.

    With several ranks each is one small batch, else each micro-batch. Images of weight 0 do not
    count, so a short last batch is measured right.
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
        """One update of this rank; nothing here waits for the device.

        `squares` [parts]: ‖·‖² of the parts' own shares of the gradient; `counts` [parts]: their
        images; `big_square`: ‖·‖² of the reduced gradient. All gradients are sums over images,
        times `loss_scale`, over the `planned` images of the global batch.
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
