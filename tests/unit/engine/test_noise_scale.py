"""The gradient noise scale: its arithmetic, and its value in a problem where it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.noise_scale import DECAY, NoiseScale, advice
from hvdtrain.engine.reducer import square
from hvdtrain.engine.step import State, train_step
from tests.noise_problem import BATCH, EXACT, batches, measured, state_on
from tests.step_samples import drained, images, network, state_of


def test_estimates_against_float64_gradients() -> None:
    """|G|² ≈ (B·S − b·s)/(B − b), tr Σ ≈ (s − S)/(1/b − 1/B), each averaged by itself."""
    random = np.random.default_rng(0)
    scale, trace, square = NoiseScale(), 0.0, 0.0
    k, b = 4, 8
    for _ in range(30):
        parts = random.standard_normal((k, 50)) + 0.5
        s, S = (parts**2).sum(1).mean(), (parts.mean(0) ** 2).sum()
        scale.add(s, 1 / b, S, k * b)
        trace = DECAY * trace + (1 - DECAY) * (s - S) / (1 / b - 1 / (k * b))
        square = DECAY * square + (1 - DECAY) * (k * b * S - b * s) / (k * b - b)
    assert scale.images == pytest.approx(trace / square, rel=1e-12)
    assert scale.measured == 30


def test_a_long_gradients_square_is_exact() -> None:
    """A plain fp32 sum has a relative error of about 2e-4 here."""
    flat = 1e-6 * torch.randn(5 * 10**6, generator=torch.Generator().manual_seed(0))
    assert float(square(flat)) == pytest.approx(float(flat.double().square().sum()), rel=2e-6)


def test_useless_measurements_are_not_added() -> None:
    scale = NoiseScale()
    assert scale.images is None
    scale.add(4.0, 1 / 8, math.inf, 16)
    scale.add(math.nan, 1 / 8, 1.0, 16)
    scale.add(4.0, 1 / 16, 1.0, 16)  # one part is the whole batch
    assert scale == NoiseScale()
    scale.add(1.0, 1 / 8, 2.0, 16)  # negative noise
    assert scale.images is None
    assert NoiseScale(**scale.state()) == scale  # type: ignore[arg-type]


def test_advice_is_the_papers_trade_off() -> None:
    at_noise = advice(1000.0, 1000)
    assert at_noise["recommended_batch"] == 1000
    assert at_noise["steps_over_fewest"] == at_noise["images_over_fewest"] == 2.0
    for batch in (10, 300, 20000):
        found = advice(1234.5, batch)
        excess = (found["steps_over_fewest"] - 1) * (found["images_over_fewest"] - 1)
        assert excess == pytest.approx(1.0)
        twice = advice(1234.5, 2 * batch)
        for what in ("steps", "images"):
            ratio = twice[f"{what}_over_fewest"] / found[f"{what}_over_fewest"]
            assert found[f"doubling_{what}"] == pytest.approx(ratio)
    assert advice(1e6, 10)["doubling_steps"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("loss_scale", [None, 1024.0])
def test_one_rank_with_micro_batches_finds_the_exact_value(loss_scale: float | None) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale or 1.0, enabled=bool(loss_scale))
    state = state_on(Solo(), every=1, accumulate=4, scaler=scaler)
    found = measured(state, batches(Solo(), 200, accumulate=4))
    assert found == pytest.approx(EXACT, rel=0.1)
    assert state.noise.scale.measured == 200


def test_padding_is_no_image() -> None:
    """Half of each micro-batch except the first is padding, whose values would change the result."""
    data = batches(Solo(), 200, accumulate=4)
    for batch in data:
        for part in range(1, 4):
            half = slice(part * BATCH + BATCH // 2, (part + 1) * BATCH)
            batch.weights[half] = 0
            batch.images[half] = 100.0
        if batch is data[0]:
            batch.weights[BATCH:] = 0  # nothing to compare in this one
    state = state_on(Solo(), every=1, accumulate=4)
    assert measured(state, data) == pytest.approx(EXACT, rel=0.1)
    assert state.noise.scale.measured == 199


def test_measuring_changes_no_weight() -> None:
    def trained(every: int) -> State:
        state = state_of(network(norm=True), accumulate=3)
        state.noise = NoiseMeter(every, parts=3)
        for step in range(5):
            train_step(state, images(12, step), 0.1, 0.9)
        drained(state)
        return state

    on, off = trained(2), trained(0)
    assert (on.noise.scale.measured, off.noise.scale.measured) == (3, 0)
    states = zip(on.model.state_dict().values(), off.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_one_rank_without_micro_batches_measures_nothing() -> None:
    meter = NoiseMeter(every=10, parts=1)
    assert not any(meter.due(step) for step in range(100))
    assert meter.take(meter.rows().tolist()) is None
    assert [step for step in range(25) if NoiseMeter(10, parts=2).due(step)] == [0, 10, 20]
