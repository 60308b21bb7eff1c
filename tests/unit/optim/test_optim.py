"""Optimizers equal float64 versions of their papers, and torch's; their state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hvdtrain.config.schema import Optimizer
from hvdtrain.optim import build_optimizer, optimizer_tensors, set_rates
from tests.unit.optim.optim_references import (
    BETA2,
    DECAY,
    EPS,
    MOMENTUM,
    REFERENCES,
    TRUST,
    Array,
    TimmLars64,
    mixture,
)

STEPS = 50


def rate(step: int) -> float:
    """Rises and falls, with jumps: shows whether the momentum buffer contains the rate."""
    return 0.3 * (1 + step % 10) / 10 * (0.1 if step >= 30 else 1.0)


def gradient(weight: Array, noise: Array) -> Array:
    """Depends on the weight, so that a wrong step is followed by wrong gradients."""
    return 0.5 * weight + noise


def optimizer_of(model: nn.Module, name: str, **options: Any) -> torch.optim.Optimizer:
    settings = {
        "momentum": MOMENTUM,
        "betas": [MOMENTUM, BETA2],
        "eps": EPS,
        "weight_decay": DECAY,
        "trust_coefficient": TRUST,
    }
    return build_optimizer(model, Optimizer.model_validate({"name": name, **settings, **options}))


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", [*REFERENCES, "lars outside"])
def test_fifty_steps_equal_the_reference(name: str, decay_all: bool) -> None:
    model, _ = mixture()
    rule, _, where = name.partition(" ")
    options = {"lars_rate": where} if where else {}
    optimizer = optimizer_of(model, rule, decay_norms_and_biases=decay_all, **options)
    weights = {key: p.detach().double().numpy().copy() for key, p in model.named_parameters()}
    decayed = {key: decay_all or w.ndim > 1 for key, w in weights.items()}
    references = {
        key: {**REFERENCES, "lars outside": TimmLars64}[name](w, DECAY if decayed[key] else 0.0)
        for key, w in weights.items()
    }
    scale = 0.1 if name in ("lamb", "adamw") else 1.0
    random = np.random.default_rng(1)
    for step in range(STEPS):
        lr = scale * rate(step)
        set_rates(optimizer, lr, MOMENTUM)
        for key, p in model.named_parameters():
            noise = 0.1 * random.standard_normal(weights[key].shape)
            assert p.grad is not None
            mine = gradient(p.detach().double().numpy(), noise)
            p.grad.copy_(torch.as_tensor(mine))
            weights[key] = references[key].step(weights[key], gradient(weights[key], noise), lr)
        optimizer.step()
    for key, p in model.named_parameters():
        worst = np.abs(p.detach().double().numpy() - weights[key]).max()
        assert worst <= 1e-6, (key, worst)


def test_adamw_is_torchs() -> None:
    ours, _ = mixture()
    theirs, _ = mixture()
    optimizer = optimizer_of(ours, "adamw")
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in theirs.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(MOMENTUM, BETA2), eps=EPS, foreach=False)
    for step in range(STEPS):
        set_rates(optimizer, 0.1 * rate(step), MOMENTUM)
        for group in reference.param_groups:
            group["lr"] = 0.1 * rate(step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            mine.grad.copy_(torch.randn(mine.shape) + mine.detach())
            other.grad.copy_(mine.grad)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6, rtol=0)


def test_a_cycled_momentum_is_beta1() -> None:
    model, _ = mixture()
    optimizer = optimizer_of(model, "lamb")
    set_rates(optimizer, 0.1, 0.85)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.85, BETA2)}
    cfg = Optimizer(name="adamw", betas=[0.8, 0.9])
    assert (cfg.first_momentum, Optimizer().first_momentum) == (0.8, 0.9)


@pytest.mark.parametrize("name", REFERENCES)
def test_state_is_listed_by_parameter_in_its_shape(name: str) -> None:
    model, _ = mixture()
    optimizer = optimizer_of(model, name)
    tensors = optimizer_tensors(model, optimizer)
    entries = {"sgd": 1, "lars": 1, "lamb": 3, "adamw": 3}[name]
    assert len(tensors) == entries * len(list(model.parameters()))
    set_rates(optimizer, 0.1, MOMENTUM)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.fill_(1.0)
    optimizer.step()
    for key, p in model.named_parameters():
        for entry in (e for e in tensors if e.startswith(f"{key}/")):
            scalar = entry.endswith("/step")
            assert tensors[entry].shape == (() if scalar else p.shape)
            assert bool((tensors[entry] != 0).all()), "not the state itself"
