"""The loss of a network, its derivatives, and landscapes that a rescaled layer does not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hvdtrain.analysis.study.batch_norm import batch_norms, recompute
from hvdtrain.analysis.study.directions import random_direction
from hvdtrain.analysis.study.hessian import density, largest_eigenvalues, spectrum
from hvdtrain.analysis.study.loss import NetworkLoss, flat
from hvdtrain.models.freezing import freeze
from pipelines.loader import Batch


def batches(
    count: int, size: int, shape: tuple[int, ...], classes: int, seed: int = 0
) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [
        Batch(
            torch.randn(size, *shape, generator=random),
            torch.randint(classes, (size,), generator=random),
            torch.ones(size),
            np.arange(size),
            0,
        )
        for _ in range(count)
    ]


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


def convolutions() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, eps=1e-12),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )


def test_derivatives_of_a_two_layer_net_are_those_of_autograd() -> None:
    images = batches(3, 5, (1, 2, 3), 3)
    loss = NetworkLoss(two_layers(), images, 15, torch.float64)
    weights = loss.weights()

    def of(w: torch.Tensor) -> torch.Tensor:
        parts = w.split([shape.numel() for shape in loss.shapes.values()])
        named = {k: p.view(s) for (k, s), p in zip(loss.shapes.items(), parts, strict=True)}
        everything = torch.cat([batch.images for batch in images]).double()
        labels = torch.cat([batch.labels for batch in images])
        logits = torch.func.functional_call(loss.model, named, (everything,))
        return functional.cross_entropy(logits, labels)

    exact = torch.autograd.functional.hessian(of, weights)
    slope = torch.autograd.functional.jacobian(of, weights)
    found = loss.gradient()
    assert float(found[0]) == pytest.approx(float(of(weights)), rel=1e-9)
    assert torch.allclose(found[1:], slope, atol=1e-9)
    assert float(loss.means()[0]) == pytest.approx(float(of(weights)), rel=1e-9)
    vector = torch.randn(loss.size, generator=torch.Generator().manual_seed(3)).double()
    assert torch.allclose(loss.product(vector), exact @ vector, atol=1e-9)

    values = torch.linalg.eigvalsh(exact).flip(0).numpy()
    ends = largest_eigenvalues(loss.product, loss.size, 4, tolerance=1e-6)
    assert ends.largest == pytest.approx(values[:4], rel=1e-4)
    assert ends.smallest == pytest.approx(values[-1], rel=1e-4)
    whole = spectrum(loss.product, loss.size, probes=loss.size, steps=loss.size)
    assert whole.trace == pytest.approx(float(exact.trace()), rel=1e-4)
    at = np.linspace(values[-1] - 0.1, values[0] + 0.1, 60)
    bells = np.exp(-0.5 * ((at[:, None] - values) / 0.05) ** 2) / (0.05 * np.sqrt(2 * np.pi))
    assert density(whole, at, 0.05) == pytest.approx(bells.mean(axis=1), abs=1e-4)


def test_parts_of_the_images_add_up() -> None:
    images, model = batches(4, 5, (1, 2, 3), 3), two_layers()
    whole = NetworkLoss(model, images, 20, torch.float64)
    parts = [NetworkLoss(model, images[k::3], 20, torch.float64) for k in range(3)]
    vector = torch.ones(whole.size, dtype=torch.float64)
    for evaluate in (NetworkLoss.means, NetworkLoss.gradient, lambda loss: loss.product(vector)):
        total = torch.stack([evaluate(part) for part in parts]).sum(0)
        assert torch.allclose(total, evaluate(whole), atol=1e-12)


def test_float32_is_close_to_float64() -> None:
    images = batches(2, 8, (3, 8, 8), 3)
    single, double = (
        NetworkLoss(convolutions(), images, 16, dtype) for dtype in (torch.float32, torch.float64)
    )
    assert torch.allclose(single.gradient(), double.gradient(), atol=1e-5)
    assert single.means()[0] == pytest.approx(float(double.means()[0]), rel=1e-6)


def test_frozen_parameters_do_not_count_and_weights_are_set() -> None:
    model = convolutions()
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    loss = NetworkLoss(model, batches(1, 4, (3, 8, 8), 3), 4, torch.float64)
    assert "0.weight" not in loss.shapes
    moved = loss.weights() + 1
    loss.set_weights(moved)
    assert torch.equal(loss.weights(), moved)
    assert len(moved) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_statistics_are_the_means_over_the_images() -> None:
    model, images = convolutions().double(), batches(3, 6, (3, 8, 8), 3)
    images[2] = batches(1, 2, (3, 8, 8), 3, seed=9)[0]
    first = model[1]
    momentum = first.momentum
    for _ in range(2):
        recompute(model, images, torch.float64)
    outputs = [model[0](batch.images.double()) for batch in images]
    sizes = torch.tensor([6.0, 6.0, 2.0]).double()
    means = torch.stack([each.mean((0, 2, 3)) for each in outputs])
    variances = torch.stack([each.var((0, 2, 3)) for each in outputs])
    assert torch.allclose(first.running_mean, (sizes @ means) / 14, atol=1e-9)
    assert torch.allclose(first.running_var, (sizes @ variances) / 14, atol=1e-9)
    assert first.momentum == momentum
    assert not any(
        module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    )


def test_frozen_batch_norms_keep_their_statistics() -> None:
    model = convolutions()
    freeze(model, ["1"])
    before = model[1].running_mean.clone()
    recompute(model, batches(1, 4, (3, 8, 8), 3), torch.float32)
    assert torch.equal(model[1].running_mean, before)
    assert batch_norms(model) == [model[4]]


def line(model: nn.Module, images: list[Batch], *, normalise: bool, anew: bool) -> np.ndarray:
    """Losses along one direction."""
    loss = NetworkLoss(model, images, sum(len(batch.labels) for batch in images), torch.float64)
    weights = loss.weights()
    along = random_direction(weights, loss.shapes, seed=0, number=0, normalise=normalise)
    values = []
    for place in np.linspace(-1, 1, 9):
        loss.set_weights(weights + place * along)
        if anew:
            recompute(model, images, torch.float64)
        values.append(float(loss.means()[0]))
    return np.array(values)


@pytest.mark.parametrize("anew", [False, True])
def test_rescaling_a_layer_before_batch_norm_changes_plain_directions_alone(anew: bool) -> None:
    images = batches(3, 16, (3, 8, 8), 3)
    lines = {}
    for factor in (1.0, 7.0):
        for normalise in (False, True):
            model = convolutions().double()
            recompute(model, images, torch.float64)
            with torch.no_grad():
                model[0].weight.mul_(factor)
                model[1].running_mean.mul_(factor)
                model[1].running_var.mul_(factor**2)
            lines[factor, normalise] = line(model, images, normalise=normalise, anew=anew)
    assert lines[7.0, True] == pytest.approx(lines[1.0, True], abs=1e-5)
    assert np.ptp(lines[1.0, True]) > 0.02
    assert np.abs(lines[7.0, False] - lines[1.0, False]).max() > 1e-2
    middle = len(lines[1.0, True]) // 2
    assert lines[7.0, False][middle] == pytest.approx(lines[1.0, False][middle], abs=1e-5)


def test_flat_keeps_the_order() -> None:
    assert flat([torch.ones(2, 1), torch.zeros(1)]).tolist() == [1, 1, 0]
