"""A teacher's share of the loss, against the formula in Python's own numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hvdtrain.config.load import parse_config
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Mixing
from hvdtrain.engine.step import State, train_step
from hvdtrain.engine.teacher import Teacher
from hvdtrain.errors import ConfigError
from tests.step_samples import Images, images, network, state_of


def softmax(row: list[float], t: float) -> list[float]:
    powers = [math.exp(z / t) for z in row]
    return [power / sum(powers) for power in powers]


def formula(
    own: float, student: list[float], teacher: list[float], share: float, t: float
) -> float:
    """share · T² · KL(teacher ‖ student) + (1 − share) · own."""
    p, q = softmax(teacher, t), softmax(student, t)
    return share * t * t * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) + (
        (1 - share) * own
    )


def taught(share: float, temperature: float) -> State:
    """With batch norm in student and teacher, mixed images and smoothed labels."""
    torch.manual_seed(8)
    state = state_of(network(norm=True))
    torch.manual_seed(9)
    teacher = network(norm=True)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.randn_like(p) / 4)
    state.teacher = Teacher(teacher.requires_grad_(False).eval(), share, temperature)
    mixing, loss = Mixing(mixup=1.0, seed=4), Loss(label_smoothing=0.1)
    state.settings = replace(state.settings, mixing=mixing, loss=loss)
    return state


@pytest.mark.parametrize(("share", "temperature"), [(0.3, 1.0), (1.0, 1.0), (0.7, 4.0), (0.5, 0.5)])
def test_the_loss_of_each_image_is_its_formula(share: float, temperature: float) -> None:
    state = taught(share, temperature)
    assert state.teacher is not None
    batch = images(6)
    [part] = state.settings.mixing.parts(batch, batch.images, 1, 0)
    logits = state.model(part.images).detach()
    outputs = state.teacher.network(part.images)
    own = state.settings.loss.of_each(logits, part)
    rows = zip(own.tolist(), logits.tolist(), outputs.tolist(), strict=True)
    expected = [formula(*row, share, temperature) for row in rows]
    assert state.losses(logits, part).tolist() == pytest.approx(expected, rel=1e-5)
    sums = train_step(state, batch, 0.0, 0.9)
    assert float(sums[0]) == pytest.approx(sum(expected), rel=1e-5)


def test_the_teacher_does_not_change_and_masked_images_weigh_nothing() -> None:
    batch = images(8)
    padded = Images(
        torch.cat([batch.images, torch.full((4, 3, 8, 8), 9.0)]),
        torch.cat([batch.labels, torch.zeros(4, dtype=torch.int64)]),
        torch.cat([batch.weights, torch.zeros(4)]),
    )
    found = []
    for given, lr in ((padded, 0.12), (batch, 0.08)):
        state = state_of(network())  # batch norm would see the padding
        state.teacher = taught(0.5, 2.0).teacher
        assert state.teacher is not None
        before = {k: t.clone() for k, t in state.teacher.network.state_dict().items()}
        for _ in range(2):
            train_step(state, given, lr, 0.9)
        after = state.teacher.network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert all(p.grad is None for p in state.teacher.network.parameters())
        found.append([p.detach() for p in state.model.parameters()])
    for short, whole in zip(*found, strict=True):
        assert torch.allclose(short, whole, atol=1e-4)


def test_settings_without_a_teacher_are_refused() -> None:
    for setting in ("share=0.9", "temperature=2", "model=resnet18"):
        with pytest.raises(ConfigError, match="model, share and temperature need weights"):
            parse_config("phases: [{epochs: 1}]", overrides=[f"train.teacher.{setting}"])
    parse_config("phases: [{epochs: 1}]", overrides=["train.teacher.share=0.5"])
