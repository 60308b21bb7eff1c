"""Directions in the space of weights."""

from __future__ import annotations

import pytest
import torch

from hvdtrain.analysis.study.directions import principal_plane, random_direction
from hvdtrain.errors import CheckpointError

SHAPES = {
    "conv": torch.Size([4, 3, 3, 3]),
    "bias": torch.Size([4]),
    "linear": torch.Size([5, 4]),
    "scale": torch.Size([5]),
}
SIZES = [shape.numel() for shape in SHAPES.values()]


def weights() -> torch.Tensor:
    return torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(1)).double()


def direction(normalise: bool, seed: int = 0, number: int = 0) -> torch.Tensor:
    return random_direction(weights(), SHAPES, seed=seed, number=number, normalise=normalise)


def test_every_filter_has_the_norm_of_its_weights() -> None:
    parts = direction(True).split(SIZES)
    for part, weight, shape in zip(parts, weights().split(SIZES), SHAPES.values(), strict=True):
        if len(shape) == 1:
            assert not part.any()
        else:
            norms = part.view(shape[0], -1).norm(dim=1)
            assert norms.tolist() == pytest.approx(
                weight.view(shape[0], -1).norm(dim=1).tolist(), rel=1e-8
            )


def test_normalised_and_plain_differ_by_a_factor_for_each_filter() -> None:
    normal, plain = (direction(flag).split(SIZES)[0].view(4, -1) for flag in (True, False))
    factors = normal / plain
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), rtol=1e-9)
    assert len(set(factors[:, 0].tolist())) == 4


def test_a_plain_direction_has_the_norm_of_all_weights_it_moves() -> None:
    moved = [
        part
        for part, shape in zip(weights().split(SIZES), SHAPES.values(), strict=True)
        if len(shape) > 1
    ]
    assert float(direction(False).norm()) == pytest.approx(float(torch.cat(moved).norm()), rel=1e-8)
    assert not direction(False).split(SIZES)[1].any()


def test_seed_and_number_decide() -> None:
    assert torch.equal(direction(True, 1, 2), direction(True, 1, 2))
    assert not torch.allclose(direction(True, 1, 0), direction(True, 1, 1))
    assert not torch.allclose(direction(True, 1, 0), direction(True, 2, 0))


def test_a_filter_of_zeros_stays() -> None:
    zeros = torch.zeros(sum(SIZES), dtype=torch.float64)
    assert not random_direction(zeros, SHAPES, seed=0, number=0, normalise=True).any()


@pytest.mark.parametrize("n", [10, 1000])
def test_a_way_in_a_plane_is_found_with_its_lengths(n: int) -> None:
    axes = torch.linalg.qr(torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).double()).Q
    places = torch.tensor([[9.0, 1.0], [6.0, 2.0], [3.0, 1.5], [1.0, 0.2], [0.0, 0.0]]).double()
    last = torch.randn(n, generator=torch.Generator().manual_seed(2)).double()
    steps = [last + axes @ place for place in places]
    plane = principal_plane(steps)
    assert torch.allclose(plane.directions @ plane.directions.T, torch.eye(2).double(), atol=1e-9)
    path = torch.tensor(plane.path).double()
    for place, step in zip(path, steps, strict=True):
        assert torch.allclose(last + place @ plane.directions, step, atol=1e-4)
    assert sum(plane.shares) == pytest.approx(1)
    squares = torch.linalg.svdvals(places[:-1]) ** 2
    assert plane.shares == pytest.approx((squares / squares.sum()).tolist(), rel=1e-4)
    assert min(plane.path[0]) >= 0


def test_no_plane_is_refused() -> None:
    last = torch.ones(5).double()
    for steps in ([last], [2 * last, last], [3 * last, 2 * last, last], [last, last, last]):
        with pytest.raises(CheckpointError, match="spans no plane: it needs three or more"):
            principal_plane(steps)
