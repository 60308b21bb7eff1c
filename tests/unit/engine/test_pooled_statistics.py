"""The batch-norm statistics of unlike ranks are pooled to those of all their images, and given back."""

from __future__ import annotations

import pytest
import torch

from hvdtrain.engine.evaluate import evaluate, pooled_statistics, rank_buffers
from hvdtrain.engine.step import State
from hvdtrain.optim.ema import Ema
from tests.step_samples import images, network, state_of
from tests.thread_ranks import Meeting, Thread


def states(size: int) -> list[State]:
    meeting = Meeting(size)
    return [state_of(network(norm=True), comm=Thread(rank, meeting)) for rank in range(size)]


def values(rank: int) -> torch.Tensor:
    """What the norm of a rank saw, [1000, 6]: another mean and spread on each rank."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(1000, 6, generator=generator, dtype=torch.float64) * (1 + rank) + 2 * rank


def all_do(ranks: list[State], work: object) -> list[object]:
    return ranks[0].comm.meeting.run(lambda comm: work(ranks[comm.rank]))  # type: ignore


@pytest.mark.parametrize("size", [2, 3])
def test_pooled_is_that_of_all_images_and_then_each_has_its_own(size: int) -> None:
    ranks = states(size)
    for rank, state in enumerate(ranks):
        norm = state.model[1]
        norm.running_mean.copy_(values(rank).mean(0))
        norm.running_var.copy_(values(rank).var(0, correction=0))
        state.ema = Ema(state.model, 0.9)
        state.ema.tensors["1.running_mean"].mul_(2)
        state.ema.tensors["1.running_var"].mul_(4)
    own = [[buffer.clone() for buffer in rank_buffers(state)] for state in ranks]

    def inside(state: State) -> list[torch.Tensor]:
        with pooled_statistics(state):
            return [buffer.clone() for buffer in rank_buffers(state)]

    union = torch.cat([values(rank) for rank in range(size)])
    mean, var = union.mean(0), union.var(0, correction=0)
    assert float(var.min()) > 1.2 * float(torch.stack([o[1] for o in own]).mean(0).max())
    for found in all_do(ranks, inside):
        for one, expected in zip(found, (mean, var, 2 * mean, 4 * var), strict=True):
            torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)
    for state, kept in zip(ranks, own, strict=True):
        assert all(map(torch.equal, rank_buffers(state), kept))


def test_an_evaluation_changes_no_statistics_and_equal_ranks_keep_their_bits() -> None:
    ranks, alone = states(3), state_of(network(norm=True))
    for state in [*ranks, alone]:
        state.model[1].running_mean.copy_(values(0).mean(0))
        state.model[1].running_var.copy_(values(0).var(0) * 1e-3)
    one = evaluate(alone, [images(6)], 6)
    for result in all_do(ranks, lambda state: evaluate(state, [images(6)], 18)):
        assert result["loss"] == pytest.approx(one["loss"], abs=1e-12)
    ranks[1].model[1].running_mean += 1
    kept = ranks[1].model[1].running_mean.clone()
    all_do(ranks, lambda state: evaluate(state, [images(6)], 18))
    assert torch.equal(ranks[1].model[1].running_mean, kept)
