"""Layer tables equal our networks and published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hvdtrain.config.schema import Model
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model
from hvdtrain.scaling.architectures import layers_of


@pytest.mark.parametrize(
    ("name", "image_size", "parameters", "billions"),
    [
        # torchvision's tables of models: parameters, and billions of multiplications.
        ("resnet18", 224, 11_689_512, 1.81),
        ("resnet50", 224, 25_557_032, 4.09),
        ("resnet101", 224, 44_549_160, 7.80),
        ("resnet152", 224, 60_192_808, 11.51),
        ("vgg16", 224, 138_357_544, 15.47),
        ("inception_v3", 299, 27_161_264 - 3_326_696, 5.71),  # less the auxiliary head
    ],
)
def test_published_sizes(name: str, image_size: int, parameters: int, billions: float) -> None:
    layers = layers_of(name, image_size)
    assert sum(layer.parameters for layer in layers) == parameters
    assert sum(layer.multiplications for layer in layers) / 1e9 == pytest.approx(billions, abs=6e-3)


def counted(name: str, size: int) -> list[tuple[list[int], float]]:
    """Convolutions and linear layers of the real network in a forward pass: elements of their
    weights, and multiplications."""
    with torch.device("meta"):
        model = build_model(Model(name=name, num_classes=10), 10)
    found = []

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        places = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        found.append((weight.numel(), float(weight.numel() * places)))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    model(torch.empty(2, 3, size, size, device="meta"))
    return found


@pytest.mark.parametrize("size", [128, 160, 224, 288])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_layer_by_layer_as_our_own_networks(name: str, size: int) -> None:
    layers = [(layer.tensors[0], layer.multiplications) for layer in layers_of(name, size, 10)]
    assert sorted(layers) == sorted(counted(name, size))
    with torch.device("meta"):
        model = build_model(Model(name=name, num_classes=10), 10)
    tensors = [n for layer in layers_of(name, size, 10) for n in layer.tensors]
    assert sorted(tensors) == sorted(p.numel() for p in model.parameters())


def test_an_unknown_network_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"airbench94: .*vgg16.*scaling calibrate"):
        layers_of("airbench94", 32)
