"""The networks by name, and how the one of a config is built. Read `resnet.py` first.

To add a network, write a function like those named in `MODELS`, and add its line there, and one in
`config/networks.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn

from hvdtrain.config.networks import unknown_model
from hvdtrain.config.schema import Model as ModelConfig
from hvdtrain.errors import ConfigError
from hvdtrain.models import external, nfnet, options, resnet, resnet_cifar, small, vgg, wide_resnet
from hvdtrain.models.freezing import freeze

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnet18d": resnet.resnet18d,
    "resnet34d": resnet.resnet34d,
    "resnet50d": resnet.resnet50d,
    "resnet101d": resnet.resnet101d,
    "nf_resnet26": nfnet.nf_resnet26,
    "nf_resnet50": nfnet.nf_resnet50,
    "nf_resnet101": nfnet.nf_resnet101,
    "nf_resnet11_cifar": nfnet.nf_resnet11_cifar,
    "nfnet_f0": nfnet.nfnet_f0,
    "nfnet_f1": nfnet.nfnet_f1,
    "nfnet_f2": nfnet.nfnet_f2,
    "nfnet_f3": nfnet.nfnet_f3,
    "nfnet_f4": nfnet.nfnet_f4,
    "nfnet_f5": nfnet.nfnet_f5,
    "nfnet_f6": nfnet.nfnet_f6,
    "resnet8_cifar": resnet_cifar.resnet8_cifar,
    "resnet11_cifar": resnet_cifar.resnet11_cifar,
    "resnet20_cifar": resnet_cifar.resnet20_cifar,
    "resnet56_cifar": resnet_cifar.resnet56_cifar,
    "resnet8_gn": resnet_cifar.resnet8_gn,
    "preact_resnet18": wide_resnet.preact_resnet18,
    "wrn16": wide_resnet.wrn16,
    "wrn22": wide_resnet.wrn22,
    "wrn28": wide_resnet.wrn28,
    "wrn34": wide_resnet.wrn34,
    "resnet9": small.resnet9,
    "airbench94": small.airbench94,
    "vgg_small": small.vgg_small,
    "vgg_sigmoid": vgg.vgg_sigmoid,
}
"""Name → function(num_classes) that makes the network with its starting weights. It also takes
`zero_gamma` and `width` if the network has these options."""


def build_model(model: ModelConfig, num_classes: int) -> nn.Module:
    """The network `model.name` as `model` says: [N, 3, H, W] float32 → [N, num_classes] logits.

    Weights are drawn from torch's global generator: seed it first. The file `model.weights` is not
    read here: `weights.load_weights` does it, on one rank. The modules in `model.freeze` are frozen.
    Raises ConfigError for an unknown name, or an option that the network does not have.
    """
    if model.name.startswith(external.PREFIXES):
        network = external.build(model.name, num_classes, model.zero_gamma)
    else:
        network = _build_own(model, num_classes)
    options.apply_options(network, model)
    freeze(network, model.freeze)
    return network


def describe_models() -> list[str]:
    """One line per model: its name, its description, and its default width if it has one."""
    lines = []
    for name, make in MODELS.items():
        summary = (make.__doc__ or "").split("\n")[0]
        width = inspect.signature(make).parameters.get("width")
        note = f" model.width: {width.default} if not set." if width else ""
        lines.append(f"{name:<16}  {summary}{note}")
    return [*lines, *external.describe()]


def _build_own(model: ModelConfig, num_classes: int) -> nn.Module:
    if model.name not in MODELS:
        raise unknown_model(model.name, MODELS)
    make = MODELS[model.name]
    accepted = inspect.signature(make).parameters
    arguments: dict[str, int | bool] = {"num_classes": num_classes}
    if "zero_gamma" in accepted:
        arguments["zero_gamma"] = model.zero_gamma
    if model.width is not None:
        if "width" not in accepted:
            wide = [
                name for name, f in MODELS.items() if "width" in inspect.signature(f).parameters
            ]
            raise ConfigError(f"model.width: {model.name} has one width; use {', '.join(wide)}")
        arguments["width"] = model.width
    return make(**arguments)
