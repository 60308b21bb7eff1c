"""Published points against the ranges that are printed; docs/explanation/scaling.md names those that are missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hvdtrain.scaling.ends import Ends, low_high
from hvdtrain.scaling.network import NETWORKS, Cluster
from hvdtrain.scaling.overlap import SIGMA
from hvdtrain.scaling.predict import update
from hvdtrain.scaling.profile import FIXED, hand_given
from hvdtrain.scaling.published import (
    BOXES,
    DIUX,
    DIUX_SENT_MB,
    Box,
    Published,
    diux,
    diux_from_one_gpu,
    diux_larger_from_smaller,
    half_width,
    published,
    traffic_per_step,
)
from hvdtrain.scaling.wire import Wire


def outside(value: float, ends: Ends[float]) -> float:
    """By how much a value is below (-) or above (+) the range."""
    low, high = low_high(ends)
    return min(0.0, value - low) + max(0.0, value - high)


MISSED = {
    "Horovod, VGG-16, 32×4, 25 Gbit RDMA": 0.051,
    "Horovod, ResNet-101, 32×4, 25 Gbit TCP": -0.002,
    "PyTorch 21.03, 8 V100, AMP": -0.053,
    "PyTorch 21.03, 8 A100, AMP": -0.074,
}


@pytest.mark.parametrize("point", [*published(), *BOXES], ids=lambda point: point.name)
def test_efficiencies_are_in_their_ranges(point: Published | Box) -> None:
    """Of all but four: by how much they are missed is on the page."""
    found = outside(point.efficiency, point.predicted())
    assert found == pytest.approx(MISSED.get(point.name, 0.0), abs=6e-4)


def test_the_published_points_include_these() -> None:
    names = [point.name for point in published()]
    assert len([name for name in names if "128×4" in name]) == 3
    assert "Goyal et al., ResNet-50, 32×8, 50 Gbit TCP" in names
    measured = {box.name: box.efficiency for box in BOXES}
    assert measured["PyTorch 21.03, 8 V100, fp32"] == pytest.approx(0.972, abs=5e-4)
    assert measured["PyTorch 21.03, 8 A100, TF32"] == pytest.approx(0.966, abs=5e-4)
    assert measured["PyTorch 21.03, 8 A100, AMP"] == pytest.approx(0.841, abs=5e-4)


def test_the_log_of_diux_is_in_ranges_of_at_most_20_per_cent() -> None:
    """Two of the five steps fix what a worker computes, the other three are predicted without them."""
    found = {(step.image_size, step.batch): (step, fitted, ends) for step, fitted, ends in diux()}
    assert [step for step, _fitted, _ends in found.values()] == DIUX
    assert [key for key, (_step, fitted, _ends) in found.items() if fitted] == [
        (128, 256),
        (224, 224),
    ]
    for step, fitted, ends in found.values():
        if fitted:
            assert ends.pair() == pytest.approx((step.median_s, step.median_s), rel=1e-6)
        else:
            assert outside(step.median_s, ends) == 0
            assert 0.01 < half_width(ends) <= 0.20


def test_nothing_is_fitted_to_the_held_out_steps() -> None:
    """The slow end of 128 px, batch 128, from the worker that takes 181 ms with batch 256, by hand."""
    cluster = Cluster(8, 8, replace(NETWORKS["tcp"], link_gbit=25.0)).at("slow")
    assert cluster.network.efficiency == 0.35

    def step_s(batch: int, alone_s: float) -> float:
        given = hand_given(
            "resnet50", image_size=128, batch=batch, step_s=alone_s, group_bytes=16 * 2**20
        )
        return update(given, cluster, Wire(0.5), SIGMA.slow).seconds

    low, high = 0.1, 0.181
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if step_s(256, middle) < 0.181 else (low, middle)
    alone_s = high * (FIXED.slow + (1 - FIXED.slow) / 2)
    (_step, _fitted, ends) = diux()[0]
    assert ends.slow == pytest.approx(step_s(128, alone_s), rel=1e-6)


def test_from_one_gpu_of_another_source_four_of_five_are_inside() -> None:
    """And the fifth is missed by 0.1 %. At 128 px the range is wider than 20 %."""
    found = [outside(step.median_s, ends) / step.median_s for step, ends in diux_from_one_gpu()]
    assert found == pytest.approx([0, 0, 0, 0.001, 0], abs=5e-4)
    widths = [half_width(ends) for _step, ends in diux_from_one_gpu()]
    assert widths == pytest.approx([0.33, 0.24, 0.11, 0.06, 0.15], abs=0.006)


def test_the_fitted_steps_from_the_others() -> None:
    """One of two is inside, and the other one is missed by 3 %."""
    found = [(step, outside(step.median_s, ends)) for step, ends in diux_larger_from_smaller()]
    assert [step.batch for step, _beyond in found] == [256, 224]
    relative = [beyond / step.median_s for step, beyond in found]
    assert relative == pytest.approx([0, -0.03], abs=5e-4)


def test_the_traffic_of_a_host() -> None:
    """A flat ring of 64: 2 · 63/64 of two bytes for each of 25.6 million parameters, and headers."""
    predicted = traffic_per_step()
    assert predicted == pytest.approx(2 * 63 / 64 * 2 * 25.557032 * 9015 / 8949, rel=1e-6)
    assert DIUX_SENT_MB[0] < predicted < DIUX_SENT_MB[1]
