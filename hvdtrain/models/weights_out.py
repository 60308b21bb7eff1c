"""Our tensors by the names that torchvision and timm have for the same networks.

The way back of `weights.rename_resnet` and `weights_nfnet`, which read those names.
Source of the names: torchvision, models/resnet.py; timm, models/resnet.py and models/nfnet.py.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from hvdtrain.errors import ConfigError

Library = Literal["torchvision", "timm"]
Tensors = dict[str, Tensor]

RESNET = (
    (r"^stem\.0\.weight$", "conv1.weight"),
    (r"^stem\.1\.", "bn1."),
)
DEEP_RESNET = (
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.(\d)\.", r"conv1.\1."),
)
"""The same with three convolutions in the stem, as in ResNet-D."""
RESNETS = (
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.shortcut\.", ".downsample."),
    (r"^classifier\.", "fc."),
)
NFNETS = (
    (r"\.shortcut\.", ".downsample.conv."),
    (r"\.excite\.reduce\.", ".attn_last.fc1."),
    (r"\.excite\.expand\.", ".attn_last.fc2."),
    (r"\.skip_gain$", ".skipinit_gain"),
    (r"^final\.", "final_conv."),
    (r"^classifier\.", "head.fc."),
)


def name_there(model: str, library: Library) -> str:
    """What `library` calls the network `model.name`. Raises ConfigError if it does not have it."""
    prefix, _, known_as = model.rpartition(":")
    if prefix == library:
        return known_as
    if not prefix and re.fullmatch(r"resnet(18|34|50|101|152)", model):
        return model
    if not prefix and library == "timm" and re.fullmatch(r"resnet(18|34|50|101)d", model):
        return model
    if not prefix and library == "timm" and re.fullmatch(r"nfnet_f\d", model):
        return f"dm_{model}"
    raise ConfigError(
        f"--names {library}: {model}: not a network of {library}: leave --names out, or use --format pt2 or "
        "onnx, which need no code of the network"
    )


def renamed(tensors: Tensors, model: str) -> Tensors:
    """`tensors` of the network `model` by the names that `name_there` goes with."""
    if ":" in model:
        return dict(tensors)
    if model.startswith("nfnet"):
        return dict(_nfnet(name, tensor) for name, tensor in tensors.items())
    rules = (*(DEEP_RESNET if "stem.7.weight" in tensors else RESNET), *RESNETS)
    return {_resnet(name, rules): tensor for name, tensor in tensors.items()}


def _resnet(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, theirs in rules:
        name = re.sub(pattern, theirs, name)
    return re.sub(r"^stages\.(\d)", lambda stage: f"layer{int(stage[1]) + 1}", name)


def _nfnet(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name = re.sub(r"^stem\.(\d)\.", lambda found: f"stem.conv{int(found[1]) // 2 + 1}.", name)
    for pattern, theirs in NFNETS:
        name = re.sub(pattern, theirs, name)
    if name.endswith(".gain"):
        tensor = tensor.view(-1, 1, 1, 1)
    elif ".attn_last." in name and name.endswith(".weight"):  # a 1×1 convolution there
        tensor = tensor[:, :, None, None]
    return name, tensor
