"""Options of `model:` for any network: pooling, dropout, stochastic depth, blurred strides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain.config.schema import Model as ModelConfig
from hvdtrain.errors import ConfigError
from hvdtrain.models.layers import Network, ResidualBlock, init_weights, use_fan_in
from hvdtrain.models.nfnet import NFNet, ScaledStdConv2d


def apply_options(model: nn.Module, cfg: ModelConfig) -> None:
    """Change `model` as `cfg` says. Raises ConfigError for an option that it does not have."""
    if not isinstance(model, Network):
        for key in ("width", "pool", "dropout", "stochastic_depth"):
            if getattr(cfg, key) is not None:
                raise ConfigError(f"model.{key}: {cfg.name} is not one of hvdtrain's own networks")
    if isinstance(model, Network):
        if cfg.pool is not None and not model.pools:
            raise ConfigError(
                f"model.pool: {cfg.name} does not pool: its dense layers see every position"
            )
        if cfg.pool is not None:
            set_pool(model, cfg.pool)
        if cfg.dropout is not None:
            model.dropout = cfg.dropout
        if cfg.stochastic_depth is not None and not set_stochastic_depth(
            model, cfg.stochastic_depth
        ):
            raise ConfigError(f"model.stochastic_depth: {cfg.name} has no residual blocks")
    _apply_rules(model, cfg)
    if cfg.blurpool and not use_blurpool(model):
        raise ConfigError(
            f"model.blurpool: {cfg.name} has no plain strided convolutions of 16 or more inputs"
        )


def _apply_rules(model: nn.Module, cfg: ModelConfig) -> None:
    """Rules by which papers differ: scaling of kept branches, padding, and the first weights."""
    if not cfg.stochastic_depth_rescale:
        blocks = [m for m in model.modules() if isinstance(m, ResidualBlock) and m.drop_rate]
        if not blocks:
            raise ConfigError(
                f"model.stochastic_depth_rescale: false: {cfg.name} drops no branches: set "
                "model.stochastic_depth, or leave it out"
            )
        for block in blocks:
            block.rescale = False
    if cfg.padding == "same":
        if not (isinstance(model, NFNet) and model.activation == "gelu"):
            raise ConfigError(
                f"model.padding: same is for nfnet_f0 … nfnet_f6, found {cfg.name}: use torch"
            )
        for module in model.modules():
            if isinstance(module, ScaledStdConv2d):
                module.same = True
    if cfg.init is not None:
        if not (isinstance(model, Network) and model.kaiming):
            raise ConfigError(
                f"model.init: {cfg.name} has a rule of its own for its first weights: leave it out"
            )
        if cfg.init == "fan_in":
            use_fan_in(model)


class ConcatPool(nn.Module):
    """Maximum and mean of every channel: [N, C, H, W] → [N, 2C, 1, 1].

    Source: Howard et al., fastai (AdaptiveConcatPool2d), https://docs.fast.ai/layers.html
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True)], 1)


def set_pool(model: Network, kind: str) -> None:
    """Pool by mean (`avg`), or by maximum and mean (`concat`) with a new, wider classifier."""
    if kind == "avg":
        model.pool = nn.AdaptiveAvgPool2d(1)
        return
    old = model.classifier
    model.pool = ConcatPool()
    model.classifier = nn.Linear(2 * old.in_features, old.out_features, old.bias is not None)
    init_weights(model.classifier)


def set_stochastic_depth(model: nn.Module, rate: float) -> int:
    """Drop the branch of block i of L at rate·i/L, i from 0; returns L.

    Source: Brock et al. 2021, https://arxiv.org/abs/2102.06171 (Huang et al. 2016 count from 1).
    """
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    for i, block in enumerate(blocks):
        block.drop_rate = rate * i / len(blocks)
    return len(blocks)


class BlurConv2d(nn.Conv2d):
    """A convolution whose input is first blurred by [1, 2, 1] ⊗ [1, 2, 1] / 16."""

    def forward(self, x: Tensor) -> Tensor:
        # Two 2×2 means in a row are that filter, with zeros beyond the border.
        x = functional.avg_pool2d(functional.avg_pool2d(x, 2, 1, padding=1), 2, 1)
        return super().forward(x)


def use_blurpool(model: nn.Module) -> int:
    """Blur the input of all strided convolutions with 16 or more inputs; returns their number.

    Parameters keep their names and values.
    Source: Zhang 2019, https://arxiv.org/abs/1904.11486; which convolutions: ffcv-imagenet.
    """
    strided = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.in_channels >= 16
    ]
    for module in strided:
        module.__class__ = BlurConv2d  # the same convolution with another input
    return len(strided)


def classifier_of(model: nn.Module) -> nn.Linear | None:
    """The layer that gives the logits: `classifier`, or in networks of other libraries the last
    linear layer; None if there is none."""
    if isinstance(model, Network):
        return model.classifier
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


def is_random(model: nn.Module) -> bool:
    """Whether the forward pass in training draws random numbers; True for any network of another
    library."""
    if not isinstance(model, Network):
        return True
    blocks = (module for module in model.modules() if isinstance(module, ResidualBlock))
    return model.dropout > 0 or any(block.drop_rate > 0 for block in blocks)
