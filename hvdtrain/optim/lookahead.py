"""Slow weights that follow the weights at intervals, and take their place."""

from __future__ import annotations

import torch

from hvdtrain.config.optimizer import Lookahead as LookaheadConfig

SLOW = "slow"
"""Name of the slow weights in the optimizer's state."""


class Lookahead:
    """Every k updates: slow ← slow + α·(w − slow), w ← slow. After the last update of a run: w ← slow.

    The slow weights are part of the optimizer's state, so checkpoints and comparisons of ranks contain
    them. They start as the weights; momentum goes on. Frozen parameters keep theirs.
    Source: Zhang et al. 2019, https://arxiv.org/abs/1907.08610; an α that changes, and the end:
    airbench94.py of https://github.com/KellerJordan/cifar10-airbench, which also averages the
    statistics of batch norms.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, cfg: LookaheadConfig) -> None:
        self._optimizer, self._cfg = optimizer, cfg
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p][SLOW] = p.clone()

    @torch.no_grad()
    def begin(self) -> None:
        """Take the present weights for the slow ones: before the first update."""
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                self._optimizer.state[p][SLOW].copy_(p)

    @torch.no_grad()
    def after_update(self, updates: int, done: float) -> None:
        """Call it after each update; `updates`: their number since the start of the run, `done`: the
        share (0-1) of the run's samples that is trained."""
        if self._cfg.every is not None and updates % self._cfg.every == 0:
            fast, slow = self._pairs()
            if fast:
                torch._foreach_lerp_(slow, fast, self._cfg.share_at(done))
                torch._foreach_copy_(fast, slow)
        if done >= 1:
            fast, slow = self._pairs()
            if fast:
                torch._foreach_copy_(fast, slow)

    def _pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Weights that are trained, and their slow weights."""
        groups = self._optimizer.param_groups
        fast = [p for group in groups for p in group["params"] if p.grad is not None]
        return fast, [self._optimizer.state[p][SLOW] for p in fast]
