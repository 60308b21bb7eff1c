"""Every sample once an epoch, on any number of ranks, through any stop and resume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import order

sizes = st.integers(1, 300)
ranks = st.integers(1, 9)
batches = st.integers(1, 40)


def walk(ids: np.ndarray, start: int, batch: int, world_size: int) -> list[list[order.Share]]:
    """Shares by step, then by rank, from `start` to the end of the epoch."""
    steps = order.steps_left(len(ids), start=start, global_batch=batch * world_size)
    return [
        [
            order.share(
                ids, start + i * batch * world_size, batch=batch, rank=r, world_size=world_size
            )
            for r in range(world_size)
        ]
        for i in range(steps)
    ]


def counted(steps: list[list[order.Share]]) -> list[int]:
    """Ids of samples with weight, in the order of the permutation."""
    return [
        int(i)
        for shares in steps
        for ids, weights in zip(
            np.stack([s.indices for s in shares]).T,
            np.stack([s.weights for s in shares]).T,
            strict=True,
        )
        for i in ids[weights == 1]
    ]


@given(sizes, st.integers(0, 2**32 - 1), st.integers(0, 1000), batches, ranks)
def test_each_sample_counts_once_and_batches_are_full(n, seed, epoch, batch, world_size):
    ids = order.permutation(n, seed=seed, epoch=epoch)
    steps = walk(ids, 0, batch, world_size)
    assert counted(steps) == ids.tolist()
    assert sorted(ids.tolist()) == list(range(n))
    for share in (share for shares in steps for share in shares):
        assert share.indices.shape == share.weights.shape == (batch,)
        assert set(share.weights.tolist()) <= {0.0, 1.0}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 100), st.data())
def test_two_levels_hold_each_sample_once_and_continue_exactly(lengths, window, data):
    n, starts = sum(lengths), np.cumsum([0, *lengths[:-1]])
    seed, epoch = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 1000))
    ids = order.shard_permutation(starts, n, window=window, seed=seed, epoch=epoch)
    assert sorted(ids.tolist()) == list(range(n))
    (b1, b2), (k1, k2) = (data.draw(st.tuples(s, s)) for s in (batches, ranks))
    steps = walk(ids, 0, b1, k1)
    stop = data.draw(st.integers(0, len(steps)))
    rest = counted(walk(ids, min(n, stop * b1 * k1), b2, k2))
    assert counted(steps[:stop]) + rest == ids.tolist()


@pytest.mark.parametrize("window", [1, 50, 400])
def test_two_levels_read_shards_in_turn(window):
    """Where shards follow each other, a sample moves by less than the window."""
    starts = np.arange(0, 5000, 100)
    ids = order.shard_permutation(starts, 5000, window=window, seed=0, epoch=0)
    shard = ids // 100
    turns = shard[np.sort(np.unique(shard, return_index=True)[1])]
    rank = np.empty(50, dtype=np.int64)
    rank[turns] = np.arange(50)
    if window == 1:
        assert ids.tolist() == [i for s in turns for i in range(100 * s, 100 * s + 100)]
        place = rank[shard] * 100 + ids % 100
        assert np.array_equal(place, np.arange(5000))
    for first in range(0, 5000, 100):
        near = np.unique(rank[shard[first : first + 100]])
        assert near.max() - near.min() <= 2 + 2 * window / 100
    assert not np.array_equal(turns, np.sort(turns))


def test_two_levels_mix_as_far_as_the_window():
    starts = np.arange(0, 20000, 10)
    ids = order.shard_permutation(starts, 20000, window=5000, seed=0, epoch=0)
    ordered = order.shard_permutation(starts, 20000, window=1, seed=0, epoch=0)
    moved = np.argsort(ids) - np.argsort(ordered)
    assert np.abs(moved).max() < 5000
    assert np.abs(moved).mean() > 1100  # about a quarter of the window


def test_the_order_on_two_levels_never_changes_between_versions():
    ids = order.shard_permutation(np.array([0, 4, 7]), 10, window=5, seed=1, epoch=0)
    assert ids.tolist() == [4, 5, 6, 0, 1, 3, 8, 2, 7, 9]


def test_classes_in_a_batch():
    labels = np.repeat(np.arange(4), 8)
    assert order.classes_per_batch(labels, np.arange(32), batch=8) == 1
    assert order.classes_per_batch(labels, np.arange(32).reshape(4, 8).T.ravel(), batch=8) == 4
    assert order.classes_per_batch(labels, np.arange(32), batch=12) == 2  # the last 8 left out
    assert order.classes_per_batch(labels, np.arange(32), batch=64) == 4


@given(sizes, batches, ranks)
def test_a_short_last_step_is_spread_evenly(n, batch, world_size):
    last = walk(order.permutation(n, seed=0, epoch=0), 0, batch, world_size)[-1]
    counts = [int(share.weights.sum()) for share in last]
    assert max(counts) - min(counts) <= 1


@given(sizes, batches, ranks, batches, ranks, st.data())
def test_resuming_with_other_ranks_and_batch_continues_exactly(n, b1, k1, b2, k2, data):
    ids = order.permutation(n, seed=1, epoch=2)
    steps = walk(ids, 0, b1, k1)
    stop = data.draw(st.integers(0, len(steps)))
    done = counted(steps[:stop])
    rest = counted(walk(ids, min(n, stop * b1 * k1), b2, k2))
    assert done + rest == ids.tolist()


def test_the_order_never_changes_between_versions():
    assert order.permutation(10, seed=1, epoch=0).tolist() == [8, 9, 6, 5, 3, 4, 7, 0, 1, 2]


def test_epochs_and_seeds_give_unrelated_orders():
    orders = [order.permutation(1000, seed=s, epoch=e) for s in range(3) for e in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12  # about 1 is expected of random orders
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_places_are_uniform():
    """A chi-square test: over many epochs a sample is anywhere in the order."""
    places = np.stack([np.argsort(order.permutation(16, seed=3, epoch=e)) for e in range(2000)])
    counts = np.stack([np.bincount(column, minlength=16) for column in places.T])
    chi2 = ((counts - 125) ** 2 / 125).sum(axis=1)
    assert chi2.max() < 45  # 15 degrees of freedom: p = 8e-5 for each of 16


@given(sizes, st.integers(1, 5), batches, ranks, batches, ranks, st.data())
def test_repeated_samples_are_dealt_exactly_so_often_through_a_stop(
    n, repeats, b1, k1, b2, k2, data
):
    ids = order.permutation(n, seed=1, epoch=0)
    stopped = data.draw(st.integers(0, repeats - 1))
    seen: list[int] = []
    for turn in range(repeats):
        part = order.repeated(ids, repeats=repeats, turn=turn)
        assert len(part) == n
        steps = walk(part, 0, b1, k1)
        if turn == stopped:
            stop = data.draw(st.integers(0, len(steps)))
            steps = steps[:stop] + walk(part, min(n, stop * b1 * k1), b2, k2)
        seen += counted(steps)
    assert seen == np.repeat(ids, repeats).tolist()
    whole = np.concatenate([order.repeated(ids, repeats=repeats, turn=t) for t in range(repeats)])
    assert len(np.unique(whole)) == n * repeats  # no copy is another one
    assert (whole // order.COPY).tolist() == list(range(repeats)) * n
