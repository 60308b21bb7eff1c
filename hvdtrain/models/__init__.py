"""The networks by name. To add one, write a function like those below and add its line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from torch import nn

from hvdtrain import config
from hvdtrain.errors import ConfigError
from hvdtrain.models import resnet, resnet_cifar

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet8_cifar": resnet_cifar.resnet8_cifar,
    "resnet11_cifar": resnet_cifar.resnet11_cifar,
    "resnet20_cifar": resnet_cifar.resnet20_cifar,
    "resnet56_cifar": resnet_cifar.resnet56_cifar,
    "resnet8_gn": resnet_cifar.resnet8_gn,
}
"""Name → function(num_classes, zero_gamma) that makes the network with its starting weights."""


def build_model(model: config.Model, num_classes: int) -> nn.Module:
    """The network `model.name`: [N, 3, H, W] float32 → [N, num_classes] logits.

    Weights are drawn from torch's global generator: seed it first.
    Raises ConfigError for a name that is not in `MODELS`.
    """
    if model.name not in MODELS:
        nearest = difflib.get_close_matches(model.name, MODELS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise ConfigError(
            f"model.name: {model.name}: unknown model; {hint}known: {', '.join(MODELS)}"
        )
    return MODELS[model.name](num_classes=num_classes, zero_gamma=model.zero_gamma)
