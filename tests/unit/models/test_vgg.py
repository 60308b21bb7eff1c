"""The network with one sigmoid output: two logits (0, z) are exactly binary cross-entropy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from hvdtrain.config.schema import Model
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model
from hvdtrain.models.vgg import SigmoidVGG, vgg_sigmoid
from hvdtrain.models.weights import load_weights


def test_loss_and_gradient_are_those_of_a_sigmoid() -> None:
    torch.manual_seed(0)
    model = vgg_sigmoid().double()
    images, labels = torch.randn(16, 3, 32, 32).double(), torch.randint(2, (16,))
    parameters = list(model.parameters())
    logits = model(images)
    z = logits[:, 1]
    assert torch.equal(logits[:, 0], torch.zeros(16, dtype=torch.float64))
    loss = functional.cross_entropy(logits, labels)
    binary = functional.binary_cross_entropy_with_logits(z, labels.double())
    torch.testing.assert_close(loss, binary, rtol=1e-14, atol=0)
    for one, other in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(binary, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-15)
    assert torch.equal(logits.argmax(1), (torch.sigmoid(z) > 0.5).long())


def test_its_layers_and_starting_weights() -> None:
    torch.manual_seed(0)
    model = vgg_sigmoid()
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [
        *((32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)),
        *((128, 2048), (1, 128)),
    ]
    for name, value in model.named_parameters():
        if value.ndim == 1:
            assert not value.any(), name
            continue
        kernel = value[0, 0].numel()
        limit = (6 / (kernel * (value.shape[0] + value.shape[1]))) ** 0.5
        assert 0.9 * limit < value.abs().max().item() <= limit, name
    features = model.features(torch.randn(2, 3, 32, 32))
    assert torch.equal(model.pool(features), features)


def test_weights_of_the_classes_in_the_other_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, images = vgg_sigmoid(), torch.randn(4, 3, 32, 32)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    same, swapped = vgg_sigmoid(), vgg_sigmoid()
    load_weights(same, tmp_path / "w.pt", [0, 1])
    [_, note] = load_weights(swapped, tmp_path / "w.pt", [1, 0])
    assert "same classes in another order" in note
    assert torch.equal(same(images), source(images))
    torch.testing.assert_close(
        swapped(images).softmax(1), source(images).softmax(1).flip(1), rtol=1e-5, atol=1e-7
    )


def test_what_it_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="one sigmoid output for 2 classes, found 3 classes"):
        build_model(Model(name="vgg_sigmoid"), 3)
    for pool in ("avg", "concat"):
        with pytest.raises(ConfigError, match=r"^model\.pool: vgg_sigmoid does not pool"):
            build_model(Model(name="vgg_sigmoid", pool=pool), 2)
    model = build_model(Model(name="vgg_sigmoid", dropout=0.5), 2)
    assert isinstance(model, SigmoidVGG)
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model.train()(images), model.eval()(images))
