"""Averaged weights: their values, where they are evaluated, and that checkpoints keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from hvdtrain.engine.checkpoint import load_checkpoint, save_checkpoint, verify
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.engine.step import State, train_step
from hvdtrain.errors import CheckpointError
from hvdtrain.optim.ema import Ema
from tests.step_samples import images, network, state_of

LABELS = {"model": "tiny", "classes": 7}


def averaging(decay: float = 0.5) -> State:
    state = state_of(network(norm=True).to(memory_format=torch.channels_last))
    state.ema = Ema(state.model, decay)
    return state


def test_averages_of_weights_and_statistics_against_numpy() -> None:
    state = averaging(0.4)
    assert state.ema is not None
    expected = {k: v.double().numpy().copy() for k, v in state.model.state_dict().items()}
    decays = []
    for step in range(8):
        train_step(state, images(6, step), 0.1, 0.9)
        decays.append(min(0.4, (1 + step) / (10 + step)))
        for key, value in state.model.state_dict().items():
            new = value.double().numpy()
            expected[key] = decays[-1] * expected[key] + (1 - decays[-1]) * new
    assert decays[0] == 0.1
    assert decays[-1] == 0.4
    for key, value in state.ema.tensors.items():
        if value.is_floating_point():
            assert np.abs(value.double().numpy() - expected[key]).max() <= 1e-6, key
    assert int(state.ema.tensors["1.num_batches_tracked"]) == 8


def test_evaluation_is_of_the_average_and_changes_nothing() -> None:
    state = averaging()
    for step in range(4):
        train_step(state, images(6, step), 0.5, 0.9)
    assert state.ema is not None
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    batch = images(40, 9)
    found = evaluate(state, [batch], 40)["loss"]
    other = network(norm=True).eval()
    other.load_state_dict(state.ema.tensors)
    expected = functional.cross_entropy(other(batch.images), batch.labels).item()
    assert found == pytest.approx(expected, rel=1e-5)
    raw = functional.cross_entropy(state.model(batch.images), batch.labels).item()
    assert raw != pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in state.model.state_dict().items())


def test_a_resumed_average_is_the_same_to_the_bit(tmp_path: Path) -> None:
    state = averaging(0.999)
    for step in range(3):
        train_step(state, images(6, step), 0.1, 0.9)
    path = save_checkpoint(state, tmp_path, 2, LABELS)
    other = averaging(0.999)
    load_checkpoint(other, path, verify(path), LABELS)
    for both in (state, other):
        for step in range(3, 6):
            train_step(both, images(6, step), 0.1, 0.9)
    assert state.ema is not None
    assert other.ema is not None
    for key, value in state.ema.tensors.items():
        assert torch.equal(value, other.ema.tensors[key]), key
    assert not torch.equal(state.ema.tensors["0.weight"], state.model.state_dict()["0.weight"])


def test_a_damaged_or_absent_average_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(averaging(), tmp_path / "with", 2, LABELS)
    file = path / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: damaged"):
        verify(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: cannot be read"):
        verify(path)
    plain = save_checkpoint(state_of(network(norm=True)), tmp_path / "without", 2, LABELS)
    with pytest.raises(CheckpointError, match=r"has no ema\.safetensors: it was made without"):
        load_checkpoint(averaging(), plain, verify(plain), LABELS)


def test_an_average_in_a_checkpoint_can_be_ignored(tmp_path: Path) -> None:
    state = averaging()
    train_step(state, images(6), 0.1, 0.9)
    path = save_checkpoint(state, tmp_path, 2, LABELS)
    other = state_of(network(norm=True))
    load_checkpoint(other, path, verify(path), LABELS)
    assert other.progress.step == 1
