"""Weights and multiplications of each layer of well-known networks, without building them.

A layer is a convolution with its norm, or a linear layer. The backward pass releases all its
gradients at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hvdtrain.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """One layer with its bias or norm."""

    tensors: tuple[int, ...]
    """Elements of its weights, then of the scale and shift of its norm, or of its bias."""
    multiplications: float
    """Of the forward pass of one image; the backward pass takes twice as many."""

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of its weights, a row for each output: norm and bias have as many elements."""
        return self.tensors[1], self.tensors[0] // self.tensors[1]

    @property
    def parameters(self) -> int:
        """Elements of all its tensors."""
        return sum(self.tensors)


class _Tape:
    """Records the layers of a network through which an image of `size` pixels a side passes."""

    def __init__(self, size: int, channels: int = 3) -> None:
        self.size, self.channels = size, channels
        self.layers: list[Layer] = []

    def conv(
        self,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
        *,
        inputs: int | None = None,
        norm: bool = True,
    ) -> None:
        """A convolution with a norm (or with a bias); `padding` None keeps the size at stride 1."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            self.size = math.ceil(self.size / stride)
        else:
            self.size = (self.size + 2 * padding - height) // stride + 1
        weights = (self.channels if inputs is None else inputs) * outputs * height * width
        rest = (outputs, outputs) if norm else (outputs,)
        self.layers.append(Layer((weights, *rest), weights * self.size**2))
        self.channels = outputs

    def pool(self, kernel: int = 3, stride: int = 2, padding: int = 0) -> None:
        self.size = (self.size + 2 * padding - kernel) // stride + 1

    def linear(self, inputs: int, outputs: int) -> None:
        self.layers.append(Layer((inputs * outputs, outputs), inputs * outputs))


def _resnet(depths: tuple[int, ...], bottleneck: bool) -> Callable[[int, int], list[Layer]]:
    """ResNet v1.5. Source: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1."""

    def layers(size: int, classes: int) -> list[Layer]:
        tape = _Tape(size)
        tape.conv(64, 7, 2)
        tape.pool(3, 2, 1)
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 else 1
                inputs, entered = tape.channels, tape.size
                if bottleneck:
                    tape.conv(width, 1)
                tape.conv(width, 3, stride)
                outputs = 4 * width if bottleneck else width
                tape.conv(outputs, 1 if bottleneck else 3)
                if stride != 1 or inputs != outputs:
                    tape.size = entered
                    tape.conv(outputs, 1, stride, inputs=inputs)
        tape.linear(tape.channels, classes)
        return tape.layers

    return layers


def _vgg16(size: int, classes: int) -> list[Layer]:
    """Source: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1, D."""
    tape = _Tape(size)
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            tape.conv(width, 3, norm=False)
        tape.pool(2)
    tape.linear(512 * 7 * 7, 4096)
    tape.linear(4096, 4096)
    tape.linear(4096, classes)
    return tape.layers


_Branch = list[tuple[int, int | tuple[int, int]]]


def _mixed(tape: _Tape, branches: list[_Branch], stride: int = 1, kept: int = 0) -> None:
    """Parallel branches of convolutions, with outputs concatenated, also with `kept` channels.

    Stride 2 is that of the last convolution of each branch, which then has no padding.
    """
    inputs, size, outputs = tape.channels, tape.size, kept
    for branch in branches:
        tape.channels, tape.size = inputs, size
        for position, (width, kernel) in enumerate(branch):
            last = stride == 2 and position == len(branch) - 1
            tape.conv(width, kernel, 2 if last else 1, 0 if last else None)
        outputs += tape.channels
    tape.channels = outputs


def _inception_v3(size: int, classes: int) -> list[Layer]:
    """Without the auxiliary head, as tf_cnn_benchmarks trains it.

    Source: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567, table 1 and figures 5 to 7, in the
    widths of TensorFlow's and torchvision's models.
    """
    tape = _Tape(size)
    tape.conv(32, 3, 2, 0)
    tape.conv(32, 3, 1, 0)
    tape.conv(64, 3)
    tape.pool()
    tape.conv(80, 1)
    tape.conv(192, 3, 1, 0)
    tape.pool()
    for pooled in (32, 64, 64):
        _mixed(tape, [[(64, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], [(pooled, 1)]])
    _mixed(tape, [[(384, 3)], [(64, 1), (96, 3), (96, 3)]], 2, tape.channels)
    row, column = (1, 7), (7, 1)
    for w in (128, 160, 160, 192):
        seven: _Branch = [(w, 1), (w, row), (192, column)]
        double: _Branch = [(w, 1), (w, column), (w, row), (w, column), (192, row)]
        _mixed(tape, [[(192, 1)], seven, double, [(192, 1)]])
    reduced: _Branch = [(192, 1), (192, row), (192, column), (192, 3)]
    _mixed(tape, [[(192, 1), (320, 3)], reduced], 2, tape.channels)
    for _ in range(2):
        _mixed(tape, [[(320, 1)], [(384, 1)], [(448, 1), (384, 3)], [(192, 1)]])
        for _ in range(2):  # both middle branches end in a row and a column in parallel
            tape.conv(384, (1, 3), inputs=384)
            tape.conv(384, (3, 1), inputs=384)
        tape.channels = 320 + 4 * 384 + 192
    tape.linear(2048, classes)
    return tape.layers


ARCHITECTURES: dict[str, Callable[[int, int], list[Layer]]] = {
    "resnet18": _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet34": _resnet((3, 4, 6, 3), bottleneck=False),
    "resnet50": _resnet((3, 4, 6, 3), bottleneck=True),
    "resnet101": _resnet((3, 4, 23, 3), bottleneck=True),
    "resnet152": _resnet((3, 8, 36, 3), bottleneck=True),
    "vgg16": _vgg16,
    "inception_v3": _inception_v3,
}
"""Name → function(image size, classes) that returns the layers in order of the forward pass."""


def layers_of(name: str, image_size: int, classes: int = 1000) -> list[Layer]:
    """The layers of network `name` in order of the forward pass; raises ConfigError if unknown."""
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"model.name: {name}: its layers are not in the table "
            f"({', '.join(ARCHITECTURES)}): measure them by hvdtrain scaling calibrate"
        )
    return ARCHITECTURES[name](image_size, classes)
