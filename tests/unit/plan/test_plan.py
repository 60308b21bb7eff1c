"""The plan: exact steps, rates equal to independent references, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import Plan, Position, make_plan

REPOSITORY = Path(__file__).parents[3]


def plan_of(text: str, world_size: int = 1, samples: int = 1000) -> Plan:
    return make_plan(parse_config(text), world_size, samples)


def all_rates(plan: Plan) -> list[float]:
    return [epoch.lr(i) for epoch in plan.epochs for i in range(epoch.steps)]


@given(
    samples=st.integers(1, 5000),
    ranks=st.integers(1, 40),
    batch=st.integers(1, 70),
    accumulate=st.integers(1, 4),
    stop=st.integers(0, 10**6),
    new_ranks=st.integers(1, 40),
)
def test_every_sample_is_planned_once_across_a_stop(
    samples: int, ranks: int, batch: int, accumulate: int, stop: int, new_ranks: int
) -> None:
    cfg = Config.model_validate(
        {
            "phases": [{"epochs": 2, "batch_per_worker": batch}],
            "train": {"accumulate": accumulate},
        }
    )
    for size in (ranks, new_ranks):
        if size * batch * accumulate > samples:
            with pytest.raises(ConfigError):
                make_plan(cfg, size, samples)
            return
    plan, new = make_plan(cfg, ranks, samples), make_plan(cfg, new_ranks, samples)
    stop %= plan.total_steps
    consumed, position, seen = 0, Position(), 0
    for epoch in plan.epochs_from(position):
        for i in range(epoch.steps):
            if seen == stop:
                break
            after = epoch.position_after(i)
            consumed, position, seen = (
                after.epoch * samples + after.sample,
                after,
                seen + 1,
            )
    assert consumed == position.epoch * samples + position.sample
    left = 0
    for epoch in new.epochs_from(position):
        before = epoch.start
        for i in range(epoch.steps):
            after_i = epoch.samples_after(i)
            assert 0 < after_i - before <= epoch.global_batch_size
            left, before = left + after_i - before, after_i
        assert before == samples
        assert epoch.position_after(epoch.steps - 1) == Position(epoch.index + 1, 0)
    assert consumed + left == 2 * samples


def test_goyal_256_gpus() -> None:
    cfg = parse_config(
        (REPOSITORY / "configs/imagenet_resnet50_goyal_32x8.yaml").read_text(), "goyal"
    )
    plan = make_plan(cfg, 256)
    assert plan.epochs[0].global_batch_size == 8192
    assert plan.epochs[0].steps == 157  # ceil(1281167 / 8192)
    rates = [epoch.lr(0) for epoch in plan.epochs]
    assert rates[0] == pytest.approx(0.1)  # η
    assert rates[5:30] == pytest.approx([3.2] * 25)  # kη, k = 32
    assert rates[30:60] == pytest.approx([0.32] * 30)
    assert rates[60:80] == pytest.approx([0.032] * 20)
    assert rates[80:] == pytest.approx([0.0032] * 10)
    # Gradual: a constant increment every iteration over 5 epochs.
    ramp = all_rates(plan)[: 5 * 157]
    per_epoch = [ramp[e * 157 + 1] - ramp[e * 157] for e in range(5)]
    assert per_epoch == pytest.approx([per_epoch[0]] * 5)
    increments = [b - a for a, b in pairwise(ramp[:157])]
    assert increments == pytest.approx([3.1 * 8192 / (5 * 1281167)] * 156)


def test_step_schedule_equals_torch_multisteplr() -> None:
    plan = plan_of(
        "lr: {base: 0.3, scaling: none, warmup: none, milestones: [2, 5], gamma: 0.2}\n"
        "phases: [{epochs: 8, batch_per_worker: 100}]"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 50], gamma=0.2)
    for rate in all_rates(plan):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_cosine_schedule_equals_torch_cosineannealinglr() -> None:
    plan = plan_of(
        "lr: {base: 0.3, scaling: none, warmup: none, schedule: cosine}\n"
        "phases: [{epochs: 7, batch_per_worker: 100}]"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 70)
    for rate in all_rates(plan):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_piecewise_equals_numpy_interp() -> None:
    import numpy as np

    plan = plan_of(
        "lr: {base: 2, scaling: none, warmup: none, schedule: piecewise, "
        "points: [[0.5, 0.1], [2, 1], [3, 0.3], [6, 0]]}\n"
        "phases: [{epochs: 7, batch_per_worker: 70}]"
    )
    times = [e.index + min(i * 70, 1000) / 1000 for e in plan.epochs for i in range(e.steps)]
    expected = 2 * np.interp(times, [0.5, 2, 3, 6], [0.1, 1, 0.3, 0])
    assert all_rates(plan) == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("scaling", "factor"), [("linear", 8.0), ("sqrt", math.sqrt(8)), ("none", 1.0)]
)
def test_scaling(scaling: str, factor: float) -> None:
    text = (
        f"lr: {{base: 0.1, scaling: {scaling}, warmup: none, schedule: constant}}\n"
        "phases: [{epochs: 1, batch_per_worker: 64}]\ntrain: {accumulate: 4}"
    )
    assert plan_of(text, 8, 4096).epochs[0].lr(0) == pytest.approx(0.1 * factor)


def test_warmup_kinds() -> None:
    def first_epochs(kind: str) -> list[float]:
        text = (
            f"lr: {{base: 0.1, warmup: {kind}, warmup_epochs: 2, schedule: constant}}\n"
            "phases: [{epochs: 3, batch_per_worker: 64}]"
        )
        return [round(epoch.lr(0), 6) for epoch in plan_of(text, 16, 1024).epochs]

    assert first_epochs("gradual") == [0.1, 0.25, 0.4]
    assert first_epochs("constant") == [0.1, 0.1, 0.4]
    assert first_epochs("none") == [0.4, 0.4, 0.4]


def test_rate_follows_the_batch_of_the_phase() -> None:
    plan = plan_of(
        "lr: {base: 0.1, warmup: none, schedule: constant}\n"
        "phases:\n"
        "  - {epochs: 1, image_size: 128, batch_per_worker: 128}\n"
        "  - {epochs: 1, image_size: 224, batch_per_worker: 32}\n"
        "  - {epochs: 2, image_size: 224, batch_per_worker: 32, lr: [0.1, 0.2]}\n"
        "  - {epochs: 1, image_size: 288, batch_per_worker: 32, lr: 0.05}\n",
        2,
        1024,
    )
    assert plan.epochs[0].lr(0) == pytest.approx(0.1)
    assert plan.epochs[1].lr(0) == pytest.approx(0.025)
    assert [plan.epochs[i].lr(0) for i in (2, 3)] == pytest.approx([0.025, 0.0375])
    assert plan.epochs[4].lr(0) == pytest.approx(0.0125)


def test_images_grow_within_a_phase() -> None:
    plan = plan_of(
        "phases:\n"
        "  - {epochs: 2, image_size: 96, batch_per_worker: 10}\n"
        "  - {epochs: 8, image_size: [96, 224], batch_per_worker: 10}\n"
        "  - {epochs: 4, image_size: [17, 33], size_multiple: 4, batch_per_worker: 10}\n"
        "  - {epochs: 3, image_size: [64, 32], size_multiple: 8, batch_per_worker: 10}\n"
    )
    sizes = [epoch.image_size for epoch in plan.epochs]
    assert sizes[:2] == [96, 96]
    # 96 + 16·e to the nearest multiple of 32, halves to the even one
    assert sizes[2:10] == [96, 128, 128, 128, 160, 192, 192, 192]
    assert sizes[10:14] == [17, 20, 24, 28]
    assert sizes[14:] == [64, 56, 40]
    assert [epoch.val_image_size for epoch in plan.epochs][1:] == [96] + [192] * 8 + [28] * 4 + [
        64
    ] * 3
    resumed = next(plan.epochs_from(Position(5, 300)))
    assert resumed.image_size == sizes[5]


def test_rates_do_not_depend_on_how_often_the_run_was_resumed() -> None:
    text = "lr: {schedule: cosine}\nphases: [{epochs: 10, batch_per_worker: 30}]"
    whole = plan_of(text, 2)
    resumed = next(whole.epochs_from(Position(3, 180)))
    assert resumed.steps == whole.epochs[3].steps - 3
    assert [resumed.lr(i) for i in range(3)] == [whole.epochs[3].lr(i) for i in range(3, 6)]


def test_refused_plans() -> None:
    text = "phases: [{epochs: 1, batch_per_worker: 64}]"
    with pytest.raises(ConfigError, match=r"phases\.0\.batch_per_worker: 64 .* 50 images each"):
        plan_of(text, 20, 1000)
    with pytest.raises(ConfigError, match="20 ranks share 10 training images"):
        plan_of(text, 20, 10)
    with pytest.raises(ConfigError, match=r"data\.train_size: unknown"):
        make_plan(parse_config(text), 1)
