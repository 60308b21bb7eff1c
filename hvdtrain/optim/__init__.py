"""Optimizers, gradient clipping and averaged weights. Read `build.py` first."""

from hvdtrain.optim.build import build_optimizer, optimizer_tensors, set_rates, set_trained
from hvdtrain.optim.by_group import UpdateByGroup

__all__ = ["UpdateByGroup", "build_optimizer", "optimizer_tensors", "set_rates", "set_trained"]
