"""The networks that `model.name` knows, as far as a plan needs them: it does not import torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from hvdtrain.errors import ConfigError

LIBRARIES = ("timm:", "torchvision:")
"""Beginnings of the names of other libraries' networks."""


class Network(NamedTuple):
    """The shape of a network in front of its last pooling."""

    halvings: int
    """How often the image is halved on the way there."""
    batch_norm: bool = True
    rounds_up: bool = True
    """Whether half of 3 pixels is 2; otherwise 1."""
    margin: int = 0
    """Pixels of the side that are lost before the first halving."""
    depths: int = 6
    """Number of its parts, each with a rate of its own by `optimizer.layer_decay`: classifier, stages, stem."""

    def last_side(self, image_size: int) -> int:
        """Side in pixels of the last features of square images; 0: the images are too small."""
        side, whole = image_size - self.margin, 1 << self.halvings
        return -(-side // whole) if self.rounds_up else side // whole

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest images that leave features."""
        return self.margin + (1 if self.rounds_up else 1 << self.halvings)


NETWORKS: dict[str, Network] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), Network(5)),
    **dict.fromkeys(("resnet18d", "resnet34d", "resnet50d", "resnet101d"), Network(5)),
    **dict.fromkeys(("nf_resnet26", "nf_resnet50", "nf_resnet101"), Network(5, batch_norm=False)),
    "nf_resnet11_cifar": Network(2, batch_norm=False, depths=5),
    **{f"nfnet_f{size}": Network(5, batch_norm=False) for size in range(7)},
    "resnet8_cifar": Network(2, depths=5),
    "resnet11_cifar": Network(3, depths=8),
    "resnet20_cifar": Network(2, depths=5),
    "resnet56_cifar": Network(2, depths=5),
    "resnet8_gn": Network(2, batch_norm=False, depths=5),
    "preact_resnet18": Network(3),
    **dict.fromkeys(("wrn16", "wrn22", "wrn28", "wrn34"), Network(2, depths=5)),
    "resnet9": Network(3, rounds_up=False, depths=7),
    "airbench94": Network(3, rounds_up=False, margin=1, depths=5),
    "vgg_small": Network(4, batch_norm=False, rounds_up=False, depths=5),
    "vgg_sigmoid": Network(3, batch_norm=False, rounds_up=False, depths=4),
}
"""All of `hvdtrain models`, by name."""


def unknown_model(name: str, known: Iterable[str] = NETWORKS) -> ConfigError:
    """The error for a `model.name` that is not known; it lists those that are."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return ConfigError(f"model.name: {name}: unknown model; {hint}known: {', '.join(names)}")


def as_made(name: str) -> str:
    """What checkpoints call a network: its name, and what sets it apart from the one that earlier versions
    trained by that name, whose weights would fit without computing the same."""
    return f"{name} with tanh-GELU" if name.startswith("nfnet_f") else name


def no_batch_norm(name: str) -> str:
    """The message for `model.batch_norm: global` of a network that has none."""
    return (
        f"model.batch_norm: global: {name} has no batch norm: leave it out, or use another network"
    )


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` is a network of hvdtrain or may be one of another library."""
    if name not in NETWORKS and not name.startswith(LIBRARIES):
        raise unknown_model(name)
