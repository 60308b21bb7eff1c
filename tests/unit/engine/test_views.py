"""Logits as the mean over several views of an image, against a computation pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hvdtrain.config.train import ValViews
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.engine.step import train_step
from hvdtrain.engine.views import mean_logits
from hvdtrain.optim.ema import Ema
from tests.step_samples import images, network, state_of

VIEWS: dict[ValViews, list[tuple[float, int, bool]]] = {
    "one": [(1.0, 0, False)],
    "mirror": [(0.5, 0, False), (0.5, 0, True)],
    "six": [
        *((0.25, 0, False), (0.25, 0, True), (0.125, 1, False), (0.125, 1, True)),
        *((0.125, -1, False), (0.125, -1, True)),
    ],
}
"""Share, pixels by which it is moved down and right, and whether it is mirrored, of each view."""


def seen(image: np.ndarray, pixels: int, *, mirrored: bool) -> np.ndarray:
    """A view of `image` [3, h, w]."""

    def inside(i: int, length: int) -> int:
        return -i if i < 0 else 2 * (length - 1) - i if i >= length else i

    found = np.empty_like(image)
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if mirrored else x
            found[:, y, x] = image[:, inside(y - pixels, height), inside(column - pixels, width)]
    return found


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_mean_over_views(views: ValViews, layout: torch.memory_format) -> None:
    """Images are not square, as with `rect_val`."""
    layer = nn.Linear(3 * 5 * 7, 4).double()
    one = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layouts = []

    def net(x: torch.Tensor) -> torch.Tensor:
        layouts.append(x.is_contiguous(memory_format=layout))
        return torch.tanh(layer(x.flatten(1)))

    expected = torch.zeros(2, 4, dtype=torch.float64)
    for share, pixels, mirrored in VIEWS[views]:
        view = np.stack([seen(image, pixels, mirrored=mirrored) for image in one.numpy()])
        expected += share * net(torch.from_numpy(view))
    layouts.clear()
    found = mean_logits(net, one.to(memory_format=layout), views)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert layouts == [True] * len(VIEWS[views])


def test_an_evaluation_is_of_the_views_that_the_run_asks_for() -> None:
    """With the averaged weights, where there are some."""
    state = state_of(network())
    state.ema = Ema(state.model, 0.9)
    batch = images(6, 1)
    train_step(state, images(8), 0.5, 0.9)
    for views in VIEWS:
        object.__setattr__(state.settings, "val_views", views)
        averages = state.ema.tensors

        def net(x: torch.Tensor, averages: dict[str, torch.Tensor] = averages) -> torch.Tensor:
            return torch.func.functional_call(state.model, averages, (x,))

        logits = mean_logits(net, batch.images, views).detach()
        expected = functional.cross_entropy(logits, batch.labels).item()
        assert evaluate(state, [batch], 6)["loss"] == pytest.approx(expected, rel=1e-6)
