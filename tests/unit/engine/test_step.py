"""Reducer, update and evaluation on one rank, against plain torch."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Optimizer, Phase
from hvdtrain.engine.calibrate import calibrate
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.step import resolve_precision, train_step
from hvdtrain.errors import DataError
from hvdtrain.optim import build_optimizer, optimizer_tensors, set_rates
from hvdtrain.optim.ema import Ema
from tests.step_samples import Images, drained, images, network, state_of


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_twenty_updates_equal_plain_torch(accumulate: int, clip: float | None) -> None:
    ours = state_of(network(), accumulate=accumulate, clip_norm=clip, weight_decay=0.01)
    model = network()
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    for step in range(20):
        batch = images(12, step)
        lr = 0.1 / (1 + step)
        train_step(ours, batch, lr, 0.9)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.images), batch.labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    for mine, theirs in zip(ours.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=0)


def test_momentum_needs_no_correction_when_the_rate_changes() -> None:
    """Goyal et al. 2017, remark 2: with v = m·v + g, w -= lr·v the rate is outside the buffer."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.zeros(1, 1)
    optimizer = build_optimizer(model, Optimizer(weight_decay=0.0, nesterov=False))
    w = v = 0.0
    for lr, gradient in [(0.1, 1.0), (0.1, 2.0), (1.0, -1.0), (1.0, 0.5)]:
        set_rates(optimizer, lr, 0.9)
        model.weight.grad.fill_(gradient)
        optimizer.step()
        v = 0.9 * v + gradient
        w -= lr * v
    assert model.weight.item() == pytest.approx(w)


def test_padding_has_no_gradient_and_is_not_counted() -> None:
    batch = images(8)
    padded = Images(
        torch.cat([batch.images, torch.full((4, 3, 8, 8), 9.0)]),
        torch.cat([batch.labels, torch.zeros(4, dtype=torch.int64)]),
        torch.cat([batch.weights, torch.zeros(4)]),
    )
    short, whole = state_of(network()), state_of(network())
    sums = train_step(short, padded, 0.12, 0.9)
    expected = train_step(whole, batch, 0.08, 0.9)
    # A batch of 8 padded to 12 keeps the weight of each image: rate × 8/12, as in linear scaling.
    assert sums.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    for mine, theirs in zip(short.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_sums_against_counting() -> None:
    state = state_of(network())
    batch = images(50)
    with torch.no_grad():
        logits = state.model(batch.images)
    ranks = logits.argsort(dim=1, descending=True)
    top1 = sum(int(row[0] == label) for row, label in zip(ranks, batch.labels, strict=True))
    top5 = sum(int(label in row[:5]) for row, label in zip(ranks, batch.labels, strict=True))
    loss = functional.cross_entropy(logits, batch.labels, reduction="sum").item()
    assert train_step(state, batch, 0.0, 0.9).tolist() == pytest.approx([loss, top1, top5, 50])


def test_only_kernels_and_matrices_are_decayed() -> None:
    model = network(norm=True)
    state = state_of(model, weight_decay=0.5, momentum=0.0)
    for p in model.parameters():
        nn.init.ones_(p)
    state.reducer.start_step()
    set_rates(state.optimizer, 1.0, 0.0)
    state.optimizer.step()  # without a gradient, only decay moves a weight
    for name, p in model.named_parameters():
        assert p.unique().tolist() == [0.5 if name in ("0.weight", "4.weight") else 1.0], name


def test_the_first_group_is_small() -> None:
    """So the exchange starts early. All other groups except the last are full."""
    layers = nn.Sequential(*[nn.Linear(10, 10, bias=False) for _ in range(20)])
    reducer = Reducer(layers.parameters(), Solo(), group_bytes=3200)
    assert [len(group.params) for group in reducer.groups] == [1, 8, 8, 3]
    assert reducer.groups[0].params == [layers[-1].weight]


def test_a_step_sees_nothing_of_the_one_before() -> None:
    """Not even a parameter that gets a gradient from the second micro-batch only."""
    weight = nn.Parameter(torch.ones(3))
    late = nn.Parameter(torch.ones(3))
    reducer = Reducer([weight, late], Solo(), accumulate=2)
    for factor in (2.0, 5.0):
        reducer.start_step()
        for loss in (weight.sum() * factor, (weight * late).sum() * factor):
            reducer.start_backward()
            loss.backward()
            reducer.end_backward()
        reducer.finish()
        assert weight.grad is not None
        assert late.grad is not None
        assert weight.grad.tolist() == [2 * factor] * 3
        assert late.grad.tolist() == [factor] * 3
        assert reducer.flats()[0].tolist() == [factor] * 3 + [2 * factor] * 3


def test_a_parameter_that_is_frozen_later_sends_zeros() -> None:
    """Its group may be sent before `finish`."""
    weight, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    reducer = Reducer([weight, frozen], Solo())
    for trained in (True, False):
        frozen.requires_grad_(trained)
        reducer.start_step()
        reducer.start_backward()
        (3 * weight + frozen.detach() + (frozen if trained else 0)).sum().backward()
        assert reducer.flats()[0].tolist() == [float(trained)] * 2 + [3.0] * 2
        reducer.end_backward()
        reducer.finish()


def test_an_unused_parameter_gets_zeros() -> None:
    model = network()
    spare = nn.Parameter(torch.ones(5))
    reducer = Reducer([*model.parameters(), spare], Solo())
    for _ in range(2):
        reducer.start_step()
        reducer.start_backward()
        model(images(2).images).sum().backward()
        reducer.finish()
    assert spare.grad is not None
    assert spare.grad.tolist() == [0.0] * 5
    assert float(next(model.parameters()).grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_channels_last_gradients_keep_their_strides() -> None:
    plain, last = network(), network().to(memory_format=torch.channels_last)
    for model in (plain, last):
        reducer = Reducer(model.parameters(), Solo())
        reducer.start_step()
        reducer.start_backward()
        model(images(4).images).square().sum().backward()
    kernel = last[0].weight
    assert kernel.grad.stride() == kernel.stride() != plain[0].weight.stride()
    assert torch.allclose(kernel.grad, plain[0].weight.grad, rtol=1e-4)


def test_evaluation_counts_every_image_once_or_fails() -> None:
    state = state_of(network())
    batches = [images(6, 1), images(6, 2)]
    batches[1].weights[4:] = 0
    result = evaluate(state, batches, 10)
    logits = torch.cat([state.model(batch.images) for batch in batches])[:10]
    labels = torch.cat([batch.labels for batch in batches])[:10]
    assert result["loss"] == pytest.approx(functional.cross_entropy(logits, labels).item())
    assert result["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    with pytest.raises(DataError, match="counted 10 images, expected exactly 11"):
        evaluate(state, batches, 11)


def test_calibration_changes_nothing() -> None:
    state = state_of(network(norm=True), accumulate=2)
    state.ema = Ema(state.model, 0.9)
    state.noise = noise = NoiseMeter(every=1, parts=2)
    train_step(state, images(8), 0.1, 0.9)

    def everything() -> list[torch.Tensor]:
        assert state.ema is not None
        tensors = [*state.model.state_dict().values(), *state.ema.tensors.values()]
        tensors += optimizer_tensors(state.model, state.optimizer).values()
        return [t.clone() for t in tensors] + [torch.get_rng_state()]

    before = everything()
    assert min(calibrate(state, images(8))) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert state.progress.step == 1
    assert state.noise is noise
    drained(state)
    assert noise.scale.measured == 1


def test_cudnn_tries_its_kernels_for_the_first_shape_of_an_evaluation_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    pooled = nn.Sequential(nn.Conv2d(3, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state, tried = state_of(pooled), []
    pooled.register_forward_hook(lambda *_: tried.append(torch.backends.cudnn.benchmark))
    whole = images(4)
    tall = Images(whole.images[..., :6], whole.labels, whole.weights)
    evaluate(state, [whole, tall, whole], 12)
    assert tried == [True, False, True]
    assert torch.backends.cudnn.benchmark


def test_a_state_that_is_dropped_is_freed() -> None:
    state = state_of(network(norm=True))
    train_step(state, images(8), 0.1, 0.9)
    alive = [weakref.ref(part) for part in (state.model, state.reducer, *state.model.parameters())]
    del state
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_precision_on_a_cpu() -> None:
    def resolved(name: str) -> torch.dtype | None:
        cfg = Config.model_validate({"phases": [{"epochs": 1}], "train": {"precision": name}})
        return resolve_precision(cfg, torch.device("cpu"))

    assert resolved("auto") is None
    assert resolved("fp32") is None
    assert resolved("bf16") is torch.bfloat16
    assert resolved("fp16") is torch.float16


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16)],
)
def test_precision_of_cards_that_only_emulate_bf16(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    # What torch finds out by making a tensor: such cards emulate bf16.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert resolve_precision(Config(phases=[Phase(epochs=1)]), torch.device("cuda", 0)) is expected
