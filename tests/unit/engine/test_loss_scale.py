"""Loss scales, overflow, and the random numbers of dropout after a resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.calibrate import calibrate
from hvdtrain.engine.checkpoint import load_checkpoint, save_checkpoint, verify
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State, train_step
from hvdtrain.optim import optimizer_tensors
from hvdtrain.optim.lars import Lars
from tests.step_samples import images, network, state_of


def scaled(scale: float, static: bool, **options: Any) -> State:
    state = state_of(network(), **options)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    state.settings = replace(state.settings, static_loss_scale=scale if static else None)
    return state


def tensors_of(state: State) -> list[torch.Tensor]:
    tensors = [*state.model.state_dict().values()]
    return [
        t.clone() for t in [*tensors, *optimizer_tensors(state.model, state.optimizer).values()]
    ]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_a_power_of_two_changes_no_bit(name: str, static: bool) -> None:
    plain, other = state_of(network(), name=name), scaled(2.0**10, static, name=name)
    for step in range(4):
        for state in (plain, other):
            train_step(state, images(6, step), 0.1, 0.9)
    assert other.scaler.get_scale() == 2.0**10
    for a, b in zip(tensors_of(plain), tensors_of(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["sgd", "lars", "lamb", "adamw"])
def test_an_overflow_skips_the_update(name: str, clip: float | None, static: bool) -> None:
    state = scaled(1e30, static, name=name, clip_norm=clip)
    before = tensors_of(state)
    batch = images(6)
    batch.images *= 1e10  # the scaled gradient is beyond fp32, the loss is not
    assert torch.isfinite(train_step(state, batch, 0.1, 0.9)).all()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))
    assert state.scaler.get_scale() == pytest.approx(1e30 if static else 0.5e30, rel=1e-6)
    assert state.skipped == 1
    train_step(state, images(6), 0.1, 0.9)
    assert state.skipped == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))


@pytest.mark.parametrize(("text", "scale"), [("dynamic", 65536.0), ("128", 128.0)])
def test_the_configs_loss_scale(text: str, scale: float) -> None:
    cfg = parse_config(
        "phases: [{epochs: 1}]\nmodel: {name: resnet8_gn}\n"
        f"train: {{precision: fp16, loss_scale: {text}}}"
    )
    state = init_state(cfg, Solo(), torch.device("cpu"), num_classes=7)
    assert state.scaler.is_enabled()
    assert state.scaler.get_scale() == scale
    assert state.settings.static_loss_scale == (None if text == "dynamic" else scale)


def test_what_a_config_turns_on() -> None:
    text = "phases: [{epochs: 1}]\nmodel: {name: resnet8_gn}\n"
    plain = init_state(parse_config(text), Solo(), torch.device("cpu"), num_classes=7)
    assert (plain.settings.agc, plain.ema, plain.settings.clip_norm) == (None, None, None)
    assert not plain.noise.due(0), "one rank, one micro-batch: nothing to compare"
    text += "seed: 5\noptimizer: {name: lars, agc: 0.02}\n"
    text += "train: {accumulate: 2, ema_decay: 0.99, noise_scale_every: 4}"
    state = init_state(parse_config(text), Solo(), torch.device("cpu"), num_classes=7)
    assert isinstance(state.optimizer, Lars)
    assert state.settings.agc is not None
    assert state.ema is not None
    assert (state.settings.agc.clipping, state.ema.decay, state.settings.seed) == (0.02, 0.99, 5)
    assert [step for step in range(9) if state.noise.due(step)] == [0, 4, 8]


def test_calibration_with_a_loss_scale_leaves_no_trace() -> None:
    state = scaled(1024.0, static=False)
    train_step(state, images(6), 0.1, 0.9)
    before, scale = tensors_of(state), state.scaler.state_dict()
    assert min(calibrate(state, images(6), min_s=0.0)) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))
    assert state.scaler.state_dict() == scale
    train_step(state, images(6), 0.1, 0.9)


def test_the_gradients_norm_is_without_loss_scale_and_before_clipping() -> None:
    state = scaled(1024.0, static=False, clip_norm=1e-3)
    train_step(state, images(6), 0.1, 0.9)
    assert state.gradient_norm is None  # it was not asked for
    plain = state_of(network())
    train_step(plain, images(6), 0.1, 0.9)
    expected = torch.cat([p.grad.flatten() for p in plain.model.parameters()]).norm().item()  # type: ignore[union-attr]
    state = scaled(1024.0, static=False, clip_norm=1e-3)
    train_step(state, images(6), 0.1, 0.9, norm=True)
    assert state.gradient_norm is not None
    assert state.gradient_norm.item() == pytest.approx(expected, rel=1e-5)


def dropping(seed: int = 0) -> State:
    torch.manual_seed(3)
    state = state_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 7)))
    state.settings = replace(state.settings, seed=seed)
    return state


def test_a_resumed_run_drops_the_same_units(tmp_path: Path) -> None:
    labels = {"classes": 7}
    whole = dropping()
    for step in range(3):
        train_step(whole, images(6, step), 0.1, 0.9)
    path = save_checkpoint(whole, tmp_path, 2, labels)
    resumed = dropping()
    torch.rand(100)
    load_checkpoint(resumed, path, verify(path), labels)
    for state in (whole, resumed):
        for step in range(3, 6):
            train_step(state, images(6, step), 0.1, 0.9)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_of(whole), tensors_of(resumed), strict=True)
    )


def test_other_steps_seeds_and_ranks_drop_others() -> None:
    weights = []
    for seed, rank, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        state = dropping(seed)
        state.comm.rank = rank  # of this instance, not of the class
        state.progress = Progress(step=step)
        train_step(state, images(6), 0.1, 0.9)
        weights.append(tensors_of(state)[0])
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
