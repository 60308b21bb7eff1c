"""Adaptive gradient clipping equals its formula; what it does not clip, and what excludes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hvdtrain.config.load import parse_config
from hvdtrain.engine.step import train_step
from hvdtrain.errors import ConfigError
from hvdtrain.optim.agc import AdaptiveClipping
from tests.step_samples import images, network, state_of
from tests.unit.optim.optim_references import Array, mixture


def agc64(w: Array, g: Array, clipping: float) -> Array:
    """The formula of Brock et al. 2021 for one unit."""
    limit = clipping * max(np.sqrt((w**2).sum()), 1e-3)
    norm = np.sqrt((g**2).sum())
    return g * limit / max(norm, 1e-6) if norm > limit else g


@pytest.mark.parametrize("bias", [False, True])
def test_agc_against_its_formula(bias: bool) -> None:
    model, _ = mixture()
    random = torch.Generator().manual_seed(5)
    expected = {}
    for key, p in model.named_parameters():
        assert p.grad is not None
        p.grad.copy_(0.02 * torch.randn(p.shape, generator=random))
        if p.ndim > 1:
            p.grad[0] *= 1e-3  # one unit below the limit
        w, g = p.detach().double().numpy(), p.grad.double().numpy().copy()
        if key == "classifier.weight" or (key == "classifier.bias" and not bias):
            expected[key] = g
        elif p.ndim <= 1:
            expected[key] = agc64(w, g, 0.01)
        else:
            expected[key] = np.stack([agc64(a, b, 0.01) for a, b in zip(w, g, strict=True)])
    before = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    AdaptiveClipping(model, 0.01, classifier_bias=bias)()
    changed = set()
    for key, p in model.named_parameters():
        assert p.grad is not None
        found = p.grad.double().numpy()
        assert np.abs(found - expected[key]).max() <= 1e-9, key
        if not torch.equal(p.grad, before[key]):
            changed.add(key)
    assert {"conv.weight", "point.weight", "conv.bias", "gain", "zero.weight"} <= changed
    assert ("classifier.bias" in changed) == bias
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
        state.settings = replace(state.settings, agc=AdaptiveClipping(state.model, 0.01))
        for step in range(5):
            train_step(state, images(12, step), 0.1, 0.9)
    other = state_of(network())
    train_step(other, images(12, 0), 0.1, 0.9)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(next(whole.model.parameters()), next(other.model.parameters()))


def test_agc_and_clip_norm_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="clip_norm and agc both clip the gradient"):
        parse_config("phases: [{epochs: 1}]\noptimizer: {agc: 0.01, clip_norm: 1.0}")
    with pytest.raises(ConfigError, match="agc_classifier_bias needs agc"):
        parse_config("phases: [{epochs: 1}]\noptimizer: {agc_classifier_bias: true}")
