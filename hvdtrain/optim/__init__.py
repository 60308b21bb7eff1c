"""Optimizers, clipping per unit, and averaged weights."""

from hvdtrain.optim.build import build_optimizer, optimizer_tensors, set_rates, set_trained

__all__ = ["build_optimizer", "optimizer_tensors", "set_rates", "set_trained"]
