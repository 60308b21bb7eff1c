"""Optimizers against float64 transcriptions and torch's own; clipping; frozen parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hvdtrain.comm import Solo
from hvdtrain.config import Optimizer
from hvdtrain.errors import ConfigError
from hvdtrain.load_config import parse_config
from hvdtrain.optim import build_optimizer, optimizer_tensors, set_rates, set_trained
from hvdtrain.optim.agc import AdaptiveClipping
from hvdtrain.reducer import Reducer
from tests.unit.test_step import images, network, state_of, train_step

Array = np.ndarray[Any, np.dtype[np.float64]]
STEPS = 50
MOMENTUM, BETA2, EPS, DECAY, TRUST = 0.9, 0.99, 1e-6, 0.05, 0.02


class Mixture(nn.Module):
    """Parameters of every kind: 4-D (channels_last, one of 1×1), 2-D, 1-D, a scalar, zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.conv = nn.Conv2d(3, 6, 3)
        self.point = nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(6)
        self.zero = nn.Linear(5, 4)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.classifier = nn.Linear(24, 7)
        nn.init.zeros_(self.zero.weight)


def mixture() -> tuple[nn.Module, Reducer]:
    model = Mixture().to(memory_format=torch.channels_last)
    return model, Reducer(model.parameters(), Solo(), group_bytes=500)


def rate(step: int) -> float:
    """Rises and falls, with jumps, so that it matters which side of the momentum it is on."""
    return 0.3 * (1 + step % 10) / 10 * (0.1 if step >= 30 else 1.0)


def gradient(weight: Array, noise: Array) -> Array:
    """Depends on the weight, so that a wrong step is followed by wrong gradients."""
    return 0.5 * weight + noise


class Lars64:
    """You et al. 2017, algorithm 1, for one tensor."""

    def __init__(self, w: Array, decay: float) -> None:
        self.v, self.decay, self.adapt = np.zeros_like(w), decay, w.ndim > 1

    def step(self, w: Array, g: Array, lr: float) -> Array:
        wn, gn = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        local = TRUST * wn / (gn + self.decay * wn) if self.adapt and wn > 0 and gn > 0 else 1.0
        self.v = MOMENTUM * self.v + lr * local * (g + self.decay * w)
        return w - self.v


class Lamb64:
    """You et al. 2020, algorithm 2, with φ the identity."""

    def __init__(self, w: Array, decay: float) -> None:
        self.m, self.v, self.t = np.zeros_like(w), np.zeros_like(w), 0
        self.decay, self.adapt = decay, w.ndim > 1

    def step(self, w: Array, g: Array, lr: float) -> Array:
        self.t += 1
        self.m = MOMENTUM * self.m + (1 - MOMENTUM) * g
        self.v = BETA2 * self.v + (1 - BETA2) * g**2
        m, v = self.m / (1 - MOMENTUM**self.t), self.v / (1 - BETA2**self.t)
        u = m / (np.sqrt(v) + EPS) + self.decay * w
        wn, un = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
        return w - lr * (wn / un if self.adapt and wn > 0 and un > 0 else 1.0) * u


class Sgd64:
    """Nesterov's momentum in torch's form, decay as an L2 term."""

    def __init__(self, w: Array, decay: float) -> None:
        self.v, self.decay = np.zeros_like(w), decay

    def step(self, w: Array, g: Array, lr: float) -> Array:
        g = g + self.decay * w
        self.v = MOMENTUM * self.v + g
        return w - lr * (g + MOMENTUM * self.v)


class AdamW64:
    """Loshchilov and Hutter 2019, algorithm 2, decay times the rate."""

    def __init__(self, w: Array, decay: float) -> None:
        self.lamb, self.decay = Lamb64(w, 0.0), decay
        self.lamb.adapt = False

    def step(self, w: Array, g: Array, lr: float) -> Array:
        return self.lamb.step(w, g, lr) - lr * self.decay * w


REFERENCES: dict[str, Callable[[Array, float], Any]] = {
    "sgd": Sgd64,
    "lars": Lars64,
    "lamb": Lamb64,
    "adamw": AdamW64,
}


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
@pytest.mark.parametrize("name", REFERENCES)
def test_fifty_steps_equal_the_reference(name: str, decay_all: bool) -> None:
    model, _ = mixture()
    optimizer = optimizer_of(model, name, decay_norms_and_biases=decay_all)
    weights = {key: p.detach().double().numpy().copy() for key, p in model.named_parameters()}
    decayed = {key: decay_all or w.ndim > 1 for key, w in weights.items()}
    references = {
        key: REFERENCES[name](w, DECAY if decayed[key] else 0.0) for key, w in weights.items()
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


def agc64(w: Array, g: Array, clipping: float) -> Array:
    """Recipe of Brock et al. 2021, one unit."""
    limit = clipping * max(np.sqrt((w**2).sum()), 1e-3)
    norm = np.sqrt((g**2).sum())
    return g * limit / max(norm, 1e-6) if norm > limit else g


def test_agc_against_its_formula() -> None:
    model, _ = mixture()
    random = torch.Generator().manual_seed(5)
    expected = {}
    for key, p in model.named_parameters():
        assert p.grad is not None
        p.grad.copy_(0.02 * torch.randn(p.shape, generator=random))
        if p.ndim > 1:
            p.grad[0] *= 1e-3  # one unit below the limit
        w, g = p.detach().double().numpy(), p.grad.double().numpy().copy()
        if key.startswith("classifier."):
            expected[key] = g
        elif p.ndim <= 1:
            expected[key] = agc64(w, g, 0.01)
        else:
            expected[key] = np.stack([agc64(a, b, 0.01) for a, b in zip(w, g, strict=True)])
    before = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    AdaptiveClipping(model, 0.01)()
    changed = set()
    for key, p in model.named_parameters():
        assert p.grad is not None
        found = p.grad.double().numpy()
        assert np.abs(found - expected[key]).max() <= 1e-9, key
        if not torch.equal(p.grad, before[key]):
            changed.add(key)
    assert {"conv.weight", "point.weight", "conv.bias", "gain", "zero.weight"} <= changed
    assert float(model.zero.weight.grad.abs().max()) > 0  # type: ignore[union-attr, operator]


def test_agc_spares_the_last_linear_layer_without_a_named_classifier() -> None:
    model = network()
    spared = {id(p) for p in model.parameters()} - {
        id(p) for p in AdaptiveClipping(model, 0.1).params
    }
    assert spared == {id(p) for p in model[3].parameters()}  # type: ignore[index]


def test_agc_with_micro_batches_sees_the_whole_gradient() -> None:
    whole, parts = state_of(network()), state_of(network(), accumulate=3)
    for state in (whole, parts):
        state.agc = AdaptiveClipping(state.model, 0.01)
        for step in range(5):
            train_step(state, images(12, step), 0.1, 0.9)
    other = state_of(network())
    train_step(other, images(12, 0), 0.1, 0.9)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(next(whole.model.parameters()), next(other.model.parameters()))


def test_agc_and_clip_norm_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="clip_norm and agc both bound the gradient"):
        parse_config("phases: [{epochs: 1}]\noptimizer: {agc: 0.01, clip_norm: 1.0}")


def train_only(model: nn.Module, names: set[str]) -> None:
    for key, p in model.named_parameters():
        p.requires_grad_(key in names)


@pytest.mark.parametrize("name", REFERENCES)
def test_frozen_parameters_stay_and_then_start_afresh(name: str) -> None:
    state = state_of(network(norm=True), name=name, weight_decay=0.1)
    model, optimizer = state.model, state.optimizer
    head = {"4.weight", "4.bias"}
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train_only(model, head)
    set_trained(model, optimizer)
    for step in range(3):
        train_step(state, images(6, step), 0.1, 0.9)
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == (key not in head), key
    for key, tensor in optimizer_tensors(model, optimizer).items():
        assert bool(tensor.any()) == (key.partition("/")[0] in head), key
    train_only(model, {*before})
    set_trained(model, optimizer)
    train_step(state, images(6, 3), 0.1, 0.9)
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_a_parameter_frozen_at_the_start_cannot_be_freed() -> None:
    model = network()
    train_only(model, {"3.weight"})
    state = state_of(model)
    set_trained(model, state.optimizer)
    train_only(model, {"3.weight", "0.bias"})
    with pytest.raises(ConfigError, match=r"0\.bias: cannot be trained: it was frozen"):
        set_trained(model, state.optimizer)


def test_a_frozen_parameter_does_not_delay_the_others() -> None:
    """Its group is sent by the last gradient that does come, not at the end."""
    state = state_of(network())
    reducer = state.reducer
    train_only(state.model, {"0.weight", "3.weight"})
    set_trained(state.model, state.optimizer)
    reducer.start_step()
    reducer.start_backward()
    state.model(images(4).images).square().sum().backward()
    assert [group.waiting_for for group in reducer.groups] == [0] * len(reducer.groups)
