"""A VGG-like network with two dense layers and one sigmoid output, for batch-size studies."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain.errors import ConfigError
from hvdtrain.models.layers import Network


class SigmoidVGG(Network):
    """Three blocks of a 3×3 convolution, ReLU and 2×2 maximum, then two dense layers.

    [N, 3, H, W] float32 → [N, 2] logits (0, z), H and W from 8 up. The second dense layer has the one
    output z, and the softmax of (0, z) is (1 − sigmoid(z), sigmoid(z)): the cross-entropy of these
    logits is the binary cross-entropy of a sigmoid, and their gradient is its gradient. The features
    of images of 32 px are 4 × 4 and go to the first dense layer as they are; of others they are
    averaged to 4 × 4. There is neither a norm nor dropout, so the loss of an image does not depend on
    its batch.
    Source of the starting weights: Glorot and Bengio 2010, uniform, biases 0.
    """

    pools: ClassVar[bool] = False
    kaiming: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for width in (32, 64, 128):
            layer = nn.Conv2d(inputs, width, 3, padding=1)
            self.features += nn.Sequential(layer, nn.ReLU(inplace=True), nn.MaxPool2d(2))
            inputs = width
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(16 * inputs, 128)
        self.classifier = nn.Linear(128, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.hidden(self.pool(self.features(images)).flatten(1)))
        if self.dropout:
            hidden = functional.dropout(hidden, self.dropout, self.training)
        z: Tensor = self.classifier(hidden)
        return torch.cat([torch.zeros_like(z), z], 1)


def vgg_sigmoid(num_classes: int = 2) -> SigmoidVGG:
    """355,649 parameters at 2 classes, the only number it has: one sigmoid output.

    Raises ConfigError for another number of classes.
    """
    if num_classes != 2:
        raise ConfigError(
            f"model.name: vgg_sigmoid has one sigmoid output for 2 classes, found {num_classes} classes: "
            "use vgg_small"
        )
    return SigmoidVGG()
