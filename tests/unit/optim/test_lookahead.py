"""Slow weights equal the paper's and airbench94's formulas, and go on exactly from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.optimizer import Lookahead as LookaheadConfig
from hvdtrain.engine.checkpoint import load_checkpoint, save_checkpoint, verify
from hvdtrain.engine.step import State, train_step
from hvdtrain.errors import CheckpointError
from hvdtrain.models import MODELS
from hvdtrain.optim import optimizer_tensors, set_rates, set_trained
from hvdtrain.optim.ema import Ema
from hvdtrain.optim.lookahead import Lookahead
from hvdtrain.train import train
from tests.step_samples import images, network, state_of
from tests.unit.optim.optim_references import DECAY, Sgd64, mixture
from tests.unit.optim.test_optim import STEPS, gradient, optimizer_of, rate

AIRBENCH = {"every": 5, "share": [1.0, 1 - 0.95**5], "power": 3.0}


def share64(form: dict[str, Any], step: int) -> float:
    """The share of the way after `step` updates; airbench94: 1 - alpha_schedule."""
    changes = isinstance(form["share"], list)
    return 1 - 0.95**5 * (step / STEPS) ** 3 if changes else float(form["share"])


@pytest.mark.parametrize("form", [{"every": 6, "share": 0.5}, AIRBENCH], ids=["paper", "airbench"])
def test_fifty_steps_equal_the_formula(form: dict[str, Any]) -> None:
    model, _ = mixture()
    optimizer = optimizer_of(model, "sgd", decay_norms_and_biases=True)
    lookahead = Lookahead(optimizer, LookaheadConfig.model_validate(form))
    weights = {key: p.detach().double().numpy().copy() for key, p in model.named_parameters()}
    slow = {key: w.copy() for key, w in weights.items()}
    references = {key: Sgd64(w, DECAY) for key, w in weights.items()}
    random = np.random.default_rng(1)
    for step in range(1, STEPS + 1):
        set_rates(optimizer, rate(step), 0.9)
        for key, p in model.named_parameters():
            noise = 0.1 * random.standard_normal(weights[key].shape)
            assert p.grad is not None
            p.grad.copy_(torch.as_tensor(gradient(p.detach().double().numpy(), noise)))
            grad = gradient(weights[key], noise)
            weights[key] = references[key].step(weights[key], grad, rate(step))
            if step % form["every"] == 0:
                slow[key] += share64(form, step) * (weights[key] - slow[key])
                weights[key] = slow[key].copy()
        optimizer.step()
        lookahead.after_update(step, step / STEPS)
    for (
        key,
        p,
    ) in model.named_parameters():  # 50 is no multiple of 6: the run ends with the slow ones
        worst = np.abs(p.detach().double().numpy() - slow[key]).max()
        assert worst <= 1e-6, (key, worst)


def slowed(rule: str) -> State:
    state = state_of(network(norm=True), name=rule)
    state.lookahead = Lookahead(state.optimizer, LookaheadConfig.model_validate({"every": 2}))
    state.ema = Ema(state.model, 0.9)
    return state


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_training_after_a_round_trip_is_identical(rule: str, tmp_path: Path) -> None:
    state, other = slowed(rule), slowed(rule)
    for step in range(3):
        train_step(state, images(6, step), 0.1, 0.9)
    path = save_checkpoint(state, tmp_path, 2, {})
    load_checkpoint(other, path, verify(path), {})
    for both in (state, other):
        for step in range(3, 6):
            train_step(both, images(6, step), 0.1, 0.9)
    mine, theirs = (
        {**s.model.state_dict(), **optimizer_tensors(s.model, s.optimizer), **s.ema.tensors}  # type: ignore[union-attr]
        for s in (state, other)
    )
    assert any(name.endswith("/slow") for name in mine)
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    without = state_of(network(norm=True), name=rule)
    without.ema = Ema(without.model, 0.9)
    with pytest.raises(CheckpointError, match=r"has slow weights: set optimizer\.lookahead as in"):
        load_checkpoint(without, path, verify(path), {})
    path = save_checkpoint(without, tmp_path, 2, {})
    with pytest.raises(
        CheckpointError, match=r"has no slow weights: set optimizer\.lookahead as in"
    ):
        load_checkpoint(state, path, verify(path), {})


def test_frozen_weights_stay() -> None:
    state = slowed("sgd")
    train_step(state, images(6), 0.1, 0.9)
    first = next(state.model.parameters())
    first.requires_grad_(False)
    set_trained(state.model, state.optimizer)
    before = first.detach().clone()
    train_step(state, images(6, 1), 0.1, 0.9, done=1.0)
    assert torch.equal(first, before)


def test_slow_weights_begin_with_the_weights_of_a_file(small_root: Path, tmp_path: Path) -> None:
    """They never follow here, and the run ends with them."""
    model = MODELS["resnet8_gn"](num_classes=2)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    cfg = parse_config(
        f"data: {{train: {small_root}/train, augment: none, decode_threads: 1}}\n"
        f"model: {{name: resnet8_gn, num_classes: 2, weights: {tmp_path}/weights.safetensors}}\n"
        "optimizer: {lookahead: {every: 100}}\n"
        "phases: [{epochs: 1, image_size: 16, batch_per_worker: 8}]\nmetrics: {enabled: false}\n"
    )
    train(cfg, Solo(), run_dir=tmp_path / "run")
    [*_, last] = sorted((tmp_path / "run/checkpoints").iterdir())
    found = safetensors.torch.load_file(last / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("text", ["{share: 0.3}", "{every: 5, power: 2}", "{every: 5, share: 0}"])
def test_settings_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"optimizer\.lookahead"):
        parse_config(f"optimizer: {{lookahead: {text}}}\nphases: [{{epochs: 1}}]")
