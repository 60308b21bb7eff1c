"""ResNet v1.5 written down once more, by the names of torchvision and timm, or of transformers."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]
DEPTHS = {
    "resnet18": [2, 2, 2, 2],
    "resnet34": [3, 4, 6, 3],
    "resnet50": [3, 4, 6, 3],
    "resnet101": [3, 4, 23, 3],
    "resnet152": [3, 8, 36, 3],
}


def has_bottlenecks(name: str) -> bool:
    return name not in ("resnet18", "resnet34")


def random_resnet(name: str, classes: int = 1000) -> Params:
    """Random values of all tensors by torchvision's names."""
    generator, found = torch.Generator().manual_seed(3), Params()

    def conv(key: str, kernel: int, inputs: int, outputs: int) -> None:
        spread = (2 / (inputs * kernel * kernel)) ** 0.5
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        found[f"{key}.weight"] = weight * spread

    def norm(key: str, width: int) -> None:
        for part, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2)):
            found[f"{key}.{part}"] = low + 0.5 * torch.rand(width, generator=generator)
        found[f"{key}.running_var"] = 0.7 + torch.rand(width, generator=generator)
        found[f"{key}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 7, 3, 64)
    norm("bn1", 64)
    inputs, last = 64, 4 if has_bottlenecks(name) else 1
    for stage, depth in enumerate(DEPTHS[name]):
        width = 64 * 2**stage
        for block in range(depth):
            at = f"layer{stage + 1}.{block}"
            kernels = (1, 3, 1) if last == 4 else (3, 3)
            sides = [inputs, *[width] * (len(kernels) - 1), width * last]
            for k, kernel in enumerate(kernels):
                conv(f"{at}.conv{k + 1}", kernel, sides[k], sides[k + 1])
                norm(f"{at}.bn{k + 1}", sides[k + 1])
            if block == 0 and (stage or last == 4):
                conv(f"{at}.downsample.0", 1, inputs, width * last)
                norm(f"{at}.downsample.1", width * last)
            inputs = width * last
    found["fc.weight"] = torch.randn(classes, inputs, generator=generator) * inputs**-0.5
    found["fc.bias"] = torch.randn(classes, generator=generator)
    return found


def plain_logits(name: str, p: Params, x: Tensor) -> Tensor:
    """The logits of images [N, 3, H, W] in evaluation, in float64."""
    p, x = {key: value.double() for key, value in p.items()}, x.double()

    def layer(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = p[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(p[f"{norm}.{part}"] for part in names))

    x = functional.max_pool2d(layer("conv1", "bn1", x, 2).relu(), 3, 2, 1)
    for stage, depth in enumerate(DEPTHS[name], 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if f"{at}.downsample.0.weight" in p:
                shortcut = layer(f"{at}.downsample.0", f"{at}.downsample.1", x, stride)
            strides = (1, stride, 1) if has_bottlenecks(name) else (stride, 1)
            for k, by in enumerate(strides, 1):
                x = layer(f"{at}.conv{k}", f"{at}.bn{k}", x if k == 1 else x.relu(), by)
            x = (x + shortcut).relu()
    return functional.linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"])


def transformers_names(p: Params) -> Params:
    """The same by the names of transformers' ResNetForImageClassification."""
    parts = {"conv": "convolution", "bn": "normalization"}

    def renamed(name: str) -> str:
        if name.startswith("fc."):
            return name.replace("fc", "classifier.1")
        if stem := re.match(r"(conv|bn)1\.", name):
            return f"resnet.embedder.embedder.{parts[stem[1]]}.{name[stem.end() :]}"
        where = re.match(r"layer(\d)\.(\d+)\.(.*)", name)
        assert where
        rest = where[3].replace("downsample.0", "shortcut.convolution")
        rest = rest.replace("downsample.1", "shortcut.normalization")
        if inner := re.match(r"(conv|bn)(\d)\.", rest):
            rest = f"layer.{int(inner[2]) - 1}.{parts[inner[1]]}.{rest[inner.end() :]}"
        return f"resnet.encoder.stages.{int(where[1]) - 1}.layers.{where[2]}.{rest}"

    return {renamed(name): value for name, value in p.items()}
