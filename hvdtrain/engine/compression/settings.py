"""What `comm.compression` rules out, and what it changes besides the exchange of gradients."""

from __future__ import annotations

import torch

from hvdtrain.config.schema import NO_LOSS_SCALE, Config
from hvdtrain.errors import ConfigError

NO_NOISE_SCALE = (
    "train.noise_scale_every: the gradient noise scale is not measured: with comm.compression: powersgd no "
    "rank has the mean gradient"
)


def require_no_loss_scale(cfg: Config, autocast: torch.dtype | None) -> None:
    """Raise ConfigError where PowerSGD would meet a loss scale: `train.precision: auto` is fp16 on some GPUs.

    `autocast`: type of the forward pass, None for fp32.
    """
    if cfg.comm.compression == "powersgd" and autocast == torch.float16:
        raise ConfigError(f"{NO_LOSS_SCALE} (auto is fp16 on this GPU)")


def noise_scale_every(cfg: Config) -> int:
    """Updates between two measurements of the noise scale; 0: never."""
    return 0 if cfg.comm.compression == "powersgd" else cfg.train.noise_scale_every


def compression_notes(cfg: Config, ranks: int) -> list[str]:
    """What a run on so many ranks leaves out because of its compression, one line each."""
    would_measure = cfg.train.noise_scale_every > 0 and max(ranks, cfg.train.accumulate) > 1
    return [NO_NOISE_SCALE] if would_measure and noise_scale_every(cfg) == 0 else []
