"""Networks that hvdtrain shares with timm, torchvision and transformers: by which names they know them."""

from __future__ import annotations

from collections.abc import Mapping

from hvdtrain.config.networks import LIBRARIES
from hvdtrain.errors import CheckpointError

SAME: Mapping[str, str] = {
    **{f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}d": f"resnet{depth}d" for depth in (18, 34, 50, 101)},
    **{f"nfnet_f{size}": f"dm_nfnet_f{size}" for size in range(7)},
}
"""Our networks → timm's, with the same weights and the same function. torchvision's ResNets are named as
timm's."""
CONVERTED: Mapping[str, str] = {
    "nf_resnet26": "resnet26",
    "nf_resnet50": "resnet50",
    "nf_resnet101": "resnet101",
}
"""Our networks → the ResNets of timm that are folded into them, see `convert.py`."""


def ours(architecture: str) -> str | None:
    """The name of our network that timm knows as `architecture`; None if there is none."""
    return next((name for name, theirs in SAME.items() if theirs == architecture), None)


def require_counterpart(architecture: str, name: str, key: str = "model.name") -> None:
    """Raise CheckpointError unless the network `name` takes the weights of timm's `architecture`.

    `key`: what sets the network in the config.
    """
    if name.startswith(LIBRARIES):
        accepted = {name.partition(":")[2].partition(".")[0]}
    else:
        accepted = {known[name] for known in (SAME, CONVERTED) if name in known}
    if architecture not in accepted:
        other = ours(architecture) or f"timm:{architecture}"
        raise CheckpointError(
            f"weights of another network: they are of {architecture}, and {key} is {name}: "
            f"set {key}={other}, or choose other weights"
        )
