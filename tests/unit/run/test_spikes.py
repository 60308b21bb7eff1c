"""Which losses count as a spike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.plan.epochs import Epoch, make_plan
from hvdtrain.run.guard.spikes import IN_A_ROW, LEAST, LossSpike, Spikes
from hvdtrain.run.guard.trail import Trail

EPOCH: Epoch = make_plan(
    parse_config("data: {train_size: 4000}\nphases: [{epochs: 9, image_size: [32, 64]}]"), 2
).epochs[0]


def noisy(middle: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Losses around `middle`, with tails as those of small batches."""
    return middle * np.exp(share * np.random.default_rng(1).standard_t(4, len(middle)))


def judged(
    losses: np.ndarray, limit: float = 10.0, per_report: int = 7, images: int = 64
) -> tuple[int, LossSpike] | None:
    """The step of the report in which a spike is found, and the spike."""
    spikes, step = Spikes(limit), 0
    for part in np.split(losses, range(per_report, len(losses), per_report)):
        step += len(part)
        sums = [value for loss in part.tolist() for value in (loss * images, images)]
        try:
            spikes.check(sums, EPOCH, step)
        except LossSpike as spike:
            return step, spike
    return None


@pytest.mark.parametrize("per_report", [1, 7, 100])
def test_a_jump_is_found_in_the_report_of_its_third_step(per_report: int) -> None:
    losses = noisy(np.full(300, 0.5))
    losses[200:] = 4.0
    found = judged(losses, per_report=per_report)
    assert found is not None
    step, spike = found
    assert step == -(-(200 + IN_A_ROW) // per_report) * per_report
    assert spike.step == 201
    assert str(spike).startswith("the loss is 4 in step 203, the last of 3 in a row above ")
    assert "which is train.loss_spike 10 times the spread 0.0" in str(spike)
    assert "above the median 0.50" in str(spike)
    assert " of the 128 steps before: lower lr.base" in str(spike)


@pytest.mark.parametrize("kind", ["falling", "slow rise", "short", "flat", "zero", "fewer"])
def test_what_is_no_spike(kind: str) -> None:
    steps = np.arange(600)
    losses = {
        "falling": noisy(6.9 * np.exp(-steps / 60) + 0.01, 0.3),
        "slow rise": noisy(1 + steps / 200),  # as after a restart of the learning rate
        "short": np.where(steps % 100 < IN_A_ROW - 1, 50.0, noisy(np.full(600, 0.5))),
        "flat": np.where(steps < 300, 1.0, 1.2),
        "zero": np.zeros(600),
        "fewer": np.where(steps < LEAST - 2, 1.0, 9.0),
    }[kind]
    assert judged(losses[: LEAST + 1] if kind == "fewer" else losses) is None


def test_single_losses_do_not_become_the_measure() -> None:
    losses = np.where(np.arange(400) % 3 == 0, 0.5, 40.0)
    losses[:LEAST] = 0.5
    assert judged(losses) is None  # never three in a row
    losses[399] = losses[398] = losses[397] = 40.0
    assert judged(losses) is not None


def test_off_and_steps_of_masked_images_alone() -> None:
    spikes = Spikes(0.0)
    trail = Trail()
    trail.add(1, np.arange(2), torch.tensor([3.0, 0.0, 0.0, 2.0]))
    assert spikes.losses(trail).tolist() == []
    assert Spikes(10.0).losses(trail).tolist() == [3.0, 2.0]
    spikes = Spikes(10.0)
    spikes.check([0.0, 0.0] * 200, EPOCH, 200)
    assert spikes.row == 0


def test_another_image_size_or_batch_begins_anew() -> None:
    for epoch in (
        replace(EPOCH, index=5),
        replace(EPOCH, phase_index=1),
        replace(EPOCH, accumulate=2),
    ):
        spikes = Spikes(10.0)
        spikes.check([64.0, 64] * 100, EPOCH, 100)
        spikes.check([640.0, 64] * 2, EPOCH, 102)
        assert spikes.row == 2
        spikes.check([640.0, 64] * LEAST, epoch, 102 + LEAST)
        assert spikes.row == 0
    spikes.check([640.0, 64] * 200, replace(epoch, start=500), 400)  # the rest of the same epoch


def test_the_trail_keeps_the_steps_of_a_spike_that_began_before_the_report() -> None:
    trail = Trail()
    for step in range(1, 9):
        trail.add(step, np.arange(3) + step, torch.tensor([float(step), 0, 0, 3]))
        if step in (3, 6):
            assert trail.losses().tolist()[::2] == [step - 2, step - 1, step]
            trail.clear(keep=2)
    assert trail.losses().tolist() == [7.0, 3.0, 8.0, 3.0]
    assert trail.images_of(5, Solo(), str) == "; it began in step 5, with the images 5, 6, 7"
    assert trail.images_of(4, Solo(), str) == ""
    trail.clear()
    assert trail.losses().tolist() == []
    assert trail.images_of(8, Solo(), str) == ""
