"""Normalizer-free networks: NF-ResNet and NFNet-F0 … F6, without any norm layer.

The variance of the signal is computed beforehand: every block divides its input by the expected
standard deviation, and with scaled weight standardisation a convolution keeps the variance.
Source: Brock et al. 2021, https://arxiv.org/abs/2101.08692 (NF-ResNet) and
https://arxiv.org/abs/2102.06171 (NFNet; sizes in its table 1 and appendix).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain.models.layers import Network, ResidualBlock, init_weights, pad_same

ALPHA = 0.2
"""Scale of every residual branch."""
ACTIVATION_GAIN = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571}
"""1 / the standard deviation of act(z), z ~ N(0, 1).
Source: the constants of Brock et al.'s published code; tests integrate them."""

Activation = Literal["relu", "gelu"]


class ScaledStdConv2d(nn.Conv2d):
    """A convolution with standardised weights, g·(W − mean)/√max(fan_in·var, 1e-4), and a bias.

    Mean and variance are per output channel; so is `gain`, g, which starts at 1.
    """

    same: bool = False
    """Pad by `pad_same`, as TensorFlow does."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs))

    def standardised(self) -> Tensor:
        """The standardised weights, in the shape of `weight`."""
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        fan_in = self.weight[0].numel()
        scale = self.gain.view(-1, 1, 1, 1) * (fan_in * var).clamp(min=1e-4).rsqrt()
        standardised: Tensor = (self.weight - mean) * scale
        return standardised

    def forward(self, x: Tensor) -> Tensor:
        if self.same and self.stride[0] > 1:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
            return functional.conv2d(
                x, self.standardised(), self.bias, self.stride, groups=self.groups
            )
        y: Tensor = self._conv_forward(x, self.standardised(), self.bias)
        return y


def activate(x: Tensor, activation: Activation, beta: float = 1.0) -> Tensor:
    """The activation, scaled to keep the variance of a standard normal input, times `beta`.

    GELU is its usual approximation by tanh, as in the published networks (jax.nn.gelu).
    """
    y = functional.relu(x) if activation == "relu" else functional.gelu(x, approximate="tanh")
    return y * (ACTIVATION_GAIN[activation] * beta)


class SqueezeExcite(nn.Module):
    """Channels weighted by 2·sigmoid of two linear layers on their means: [N, C, H, W] → same.

    Source: Hu et al. 2017, https://arxiv.org/abs/1709.01507; the factor 2: Brock et al. 2021.
    """

    def __init__(self, channels: int, ratio: float = 0.5) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = 2 * self.expand(self.reduce(x.mean((2, 3))).relu_()).sigmoid()
        return x * weights[:, :, None, None]


class NFBlock(ResidualBlock):
    """x + α·gain·branch(act(x)·β): [N, inputs, H, W] → [N, outputs, H/stride, W/stride].

    The branch is 1×1, 3×3 (twice if `form` says so), 1×1, and squeeze-excite. `beta` is 1 / the
    expected standard deviation of x. A projection, too, gets act(x)·β.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, beta: float, form: Form) -> None:
        super().__init__()
        width = int(outputs * form.bottleneck)
        groups = width // form.group_width if form.group_width else 1
        self.activation: Activation = form.activation
        self.beta = beta
        self.pooled_shortcut = form.pooled_shortcut and stride == 2
        self.conv1 = ScaledStdConv2d(inputs, width, 1)
        self.conv2 = ScaledStdConv2d(width, width, 3, stride, groups)
        self.conv2b = ScaledStdConv2d(width, width, 3, 1, groups) if form.two_3x3 else None
        self.conv3 = ScaledStdConv2d(width, outputs, 1)
        self.excite = SqueezeExcite(outputs) if form.excite else None
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            in_conv = 1 if self.pooled_shortcut else stride
            self.shortcut = ScaledStdConv2d(inputs, outputs, 1, in_conv)
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        active = activate(x, self.activation, self.beta)
        y: Tensor = activate(self.conv1(active), self.activation)
        y = activate(self.conv2(y), self.activation)
        if self.conv2b is not None:
            y = activate(self.conv2b(y), self.activation)
        y = self.conv3(y)
        if self.excite is not None:
            y = self.excite(y)
        y = self.drop(y) * (ALPHA * self.skip_gain)
        if self.shortcut is None:
            return y + x
        if self.pooled_shortcut:
            active = functional.avg_pool2d(active, 2, ceil_mode=True)
        shortcut: Tensor = self.shortcut(active)
        return y + shortcut


class Form(NamedTuple):
    """The differences between the blocks of the two families."""

    activation: Activation
    bottleneck: float
    group_width: int | None
    two_3x3: bool
    excite: bool
    pooled_shortcut: bool


NF_RESNET = Form("relu", 0.25, None, two_3x3=False, excite=False, pooled_shortcut=False)
NFNET = Form("gelu", 0.5, 128, two_3x3=True, excite=True, pooled_shortcut=True)


def expected_variances(depths: list[int]) -> Iterator[float]:
    """The variance of the input of every block, in order, at skip gains of 1.

    It grows by α² with each block, and is 1 again after the projection of a stage.
    """
    variance = 1.0
    for depth in depths:
        for position in range(depth):
            yield variance
            variance = (1.0 if position == 0 else variance) + ALPHA**2


class NFNet(Network):
    """A normalizer-free network: [N, 3, H, W] float32 → [N, num_classes] logits; H, W ≥ 32."""

    kaiming: ClassVar[bool] = False

    def __init__(
        self,
        form: Form,
        stem: nn.Module,
        stem_width: int,
        widths: list[int],
        depths: list[int],
        final_width: int | None,
        num_classes: int,
        zero_gamma: bool,
    ) -> None:
        super().__init__()
        self.depths = depths
        self.activation: Activation = form.activation
        self.stem = stem
        self.stages = nn.Sequential()
        inputs, variances = stem_width, expected_variances(depths)
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = nn.Sequential()
            for position in range(depth):
                stride = 2 if position == 0 and stage > 0 else 1
                blocks.append(NFBlock(inputs, width, stride, next(variances) ** -0.5, form))
                inputs = width
            self.stages.append(blocks)
        self.final = ScaledStdConv2d(inputs, final_width, 1) if final_width else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(final_width or inputs, num_classes)
        _init(self, zero_gamma)

    def forward(self, images: Tensor) -> Tensor:
        features = self.final(self.stages(self.stem(images)))
        return self.classify(activate(features, self.activation))


def _init(model: nn.Module, zero_gamma: bool) -> None:
    """Draw the weights: N(0, 1/fan_in), biases 0, skip gains 0 (1 without `zero_gamma`)."""
    init_weights(model)
    for module in model.modules():
        if isinstance(module, ScaledStdConv2d):
            nn.init.normal_(module.weight, 0.0, 1 / math.sqrt(module.weight[0].numel()))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, SqueezeExcite):
            for layer in (module.reduce, module.expand):
                nn.init.normal_(layer.weight, 0.0, 1 / math.sqrt(layer.in_features))
        elif isinstance(module, NFBlock):
            nn.init.constant_(module.skip_gain, 0.0 if zero_gamma else 1.0)


def nf_resnet(depths: list[int], num_classes: int, zero_gamma: bool) -> NFNet:
    """The normalizer-free form of the ResNet v1.5 with these depths."""
    stem = nn.Sequential(ScaledStdConv2d(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1))
    widths = [256, 512, 1024, 2048]
    return NFNet(NF_RESNET, stem, 64, widths, depths, None, num_classes, zero_gamma)


def nf_resnet26(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """15,995,184 parameters at 1000 classes."""
    return nf_resnet([2, 2, 2, 2], num_classes, zero_gamma)


def nf_resnet50(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """25,557,048 parameters at 1000 classes."""
    return nf_resnet([3, 4, 6, 3], num_classes, zero_gamma)


def nf_resnet101(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """44,549,193 parameters at 1000 classes."""
    return nf_resnet([3, 4, 23, 3], num_classes, zero_gamma)


def nf_resnet11_cifar(num_classes: int = 10, zero_gamma: bool = True) -> NFNet:
    """Three blocks behind a 3×3 stem, for images from 8 px up; 500,013 parameters at 10 classes."""
    stem = ScaledStdConv2d(3, 32, 3)
    return NFNet(NF_RESNET, stem, 32, [128, 256, 512], [1, 1, 1], None, num_classes, zero_gamma)


class ScaledGELU(nn.Module):
    """GELU scaled to keep the variance of a standard normal input."""

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, "gelu")


def nfnet_f(index: int, num_classes: int, zero_gamma: bool) -> NFNet:
    """NFNet-F`index`: depths (1, 2, 6, 3)·(index + 1), dropout by size, stochastic depth 0.25."""
    stem = nn.Sequential(
        ScaledStdConv2d(3, 16, 3, 2),
        ScaledGELU(),
        ScaledStdConv2d(16, 32, 3),
        ScaledGELU(),
        ScaledStdConv2d(32, 64, 3),
        ScaledGELU(),
        ScaledStdConv2d(64, 128, 3, 2),
    )
    depths = [depth * (index + 1) for depth in (1, 2, 6, 3)]
    widths = [256, 512, 1536, 1536]
    model = NFNet(NFNET, stem, 128, widths, depths, 3072, num_classes, zero_gamma)
    model.dropout = (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5)[index]
    blocks = [module for module in model.modules() if isinstance(module, NFBlock)]
    for position, block in enumerate(blocks):
        block.drop_rate = 0.25 * position / len(blocks)
    return model


def nfnet_f0(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """71.5 million parameters at 1000 classes; trained at 192 px, tested at 256."""
    return nfnet_f(0, num_classes, zero_gamma)


def nfnet_f1(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """132.6 million parameters at 1000 classes; trained at 224 px, tested at 320."""
    return nfnet_f(1, num_classes, zero_gamma)


def nfnet_f2(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """193.8 million parameters at 1000 classes; trained at 256 px, tested at 352."""
    return nfnet_f(2, num_classes, zero_gamma)


def nfnet_f3(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """254.9 million parameters at 1000 classes; trained at 320 px, tested at 416."""
    return nfnet_f(3, num_classes, zero_gamma)


def nfnet_f4(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """316.1 million parameters at 1000 classes; trained at 384 px, tested at 512."""
    return nfnet_f(4, num_classes, zero_gamma)


def nfnet_f5(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """377.2 million parameters at 1000 classes; trained at 416 px, tested at 544."""
    return nfnet_f(5, num_classes, zero_gamma)


def nfnet_f6(num_classes: int = 1000, zero_gamma: bool = True) -> NFNet:
    """438.4 million parameters at 1000 classes; trained at 448 px, tested at 576."""
    return nfnet_f(6, num_classes, zero_gamma)
