"""Frozen parameters stay as they are, delay nothing, and start without old momentum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvdtrain.engine.step import train_step
from hvdtrain.errors import ConfigError
from hvdtrain.optim import optimizer_tensors, set_trained
from tests.step_samples import images, network, state_of
from tests.unit.optim.optim_references import REFERENCES


def train_only(model: nn.Module, names: set[str]) -> None:
    for key, p in model.named_parameters():
        p.requires_grad_(key in names)


@pytest.mark.parametrize("name", [*REFERENCES, "muon"])
def test_frozen_parameters_stay_and_then_start_without_momentum(name: str) -> None:
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


def test_a_parameter_frozen_at_the_start_cannot_be_unfrozen() -> None:
    model = network()
    train_only(model, {"3.weight"})
    state = state_of(model)
    set_trained(model, state.optimizer)
    train_only(model, {"3.weight", "0.bias"})
    with pytest.raises(ConfigError, match=r"0\.bias: cannot be trained: it was frozen"):
        set_trained(model, state.optimizer)


def test_a_frozen_parameter_does_not_delay_the_others() -> None:
    """Its group is sent after the last gradient of a trained parameter, not at the end."""
    state = state_of(network())
    reducer = state.reducer
    train_only(state.model, {"0.weight", "3.weight"})
    set_trained(state.model, state.optimizer)
    reducer.start_step()
    reducer.start_backward()
    state.model(images(4).images).square().sum().backward()
    assert [group.waiting_for for group in reducer.groups] == [0] * len(reducer.groups)
