"""airbench: whitened inputs, over one rank or many, and layers that start as copies."""

import torch
from torch import nn
from torch.nn import functional

from hvdtrain.models.small import patch_moments
from tests.unit.models.model_samples import build


def patches(images: torch.Tensor) -> torch.Tensor:
    """All 2×2 patches as rows of 12, in double precision."""
    return images.double().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)


def test_whitening_makes_the_covariance_the_identity() -> None:
    torch.manual_seed(1)
    model = build("airbench94")
    smooth = functional.avg_pool2d(torch.randn(40, 3, 22, 22), 3, 1)
    images = (smooth + 0.5 * smooth.flip(1)) * 3
    model.whiten(images)
    weight = model.whitening.weight.detach().double().reshape(24, 12)
    assert torch.equal(weight[:12], -weight[12:])
    y = patches(images) @ weight[:12].T
    second = y.T @ y / len(y)
    # Each variance is v / (v + eps); those of the smallest eigenvalues fall short of 1.
    values = torch.linalg.eigvalsh(patches(images).T @ patches(images) / len(y)).flip(0)
    expected = torch.diag(values / (values + 5e-4))
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-4)
    assert expected.diagonal().min() > 0.95
    outputs = model.whitening(images).double()
    torch.testing.assert_close(
        outputs[:, :12].permute(0, 2, 3, 1).reshape(-1, 12), y, rtol=1e-4, atol=1e-4
    )


def test_whitening_over_ranks_is_that_over_all_images() -> None:
    images = torch.randn(12, 3, 10, 10)
    whole, part = build("airbench94"), build("airbench94")
    whole.whiten(images)
    part.whiten(images[:5], lambda sums: sums + patch_moments(images[5:]))
    torch.testing.assert_close(part.whitening.weight, whole.whitening.weight, rtol=1e-4, atol=1e-5)


def test_airbench_starts_as_copies_of_its_inputs() -> None:
    model = build("airbench94")
    layer = model.features[1][0]
    x = torch.randn(1, 24, 6, 6)
    assert torch.equal(layer(x)[:, :24], x)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(1e-12, 0.4)}
    assert all(torch.equal(n.weight, torch.ones_like(n.weight)) for n in norms)
