"""How far each parameter of a network is from its output, counted in stages."""

from __future__ import annotations

from torch import nn

from hvdtrain.errors import ConfigError
from hvdtrain.models.layers import Network

CONTAINERS = ("stages", "features")
"""Attributes of a network whose modules are its stages."""


def depths_of(model: nn.Module, name: str) -> dict[str, int]:
    """Depth of each parameter: 0 in the classifier, 1 in the last stage, and so on down to the stem.

    What lies between the stages and the classifier counts as the latter. `name`: of the network, for
    messages. Raises ConfigError for a network of another library.
    Source: timm's `group_matcher(coarse=True)`, which numbers them from the images on.
    """
    if not isinstance(model, Network):
        raise ConfigError(
            f"optimizer.layer_decay: {name} is not one of hvdtrain's own networks, whose stages it knows"
        )
    parts: list[str] = []
    for part, module in model.named_children():
        if part in CONTAINERS:
            parts += [f"{part}.{i}" for i, stage in module.named_children() if has_weights(stage)]
            break
        parts.append(part)
    order = {part: number for number, part in enumerate(reversed(parts), 1)}
    return {
        key: next((depth for part, depth in order.items() if key.startswith(f"{part}.")), 0)
        for key, _ in model.named_parameters()
    }


def has_weights(module: nn.Module) -> bool:
    """Whether it has any parameter."""
    return any(True for _ in module.parameters())
