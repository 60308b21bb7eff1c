"""The trade-off of the noise scale, and which batch it makes the fastest on how many nodes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hvdtrain.analysis.study.noise.nodes import (
    Answer,
    Own,
    Predictor,
    answer,
    doubling,
    offer_of,
    shares,
)
from hvdtrain.analysis.study.noise.recorded import read_recorded
from hvdtrain.analysis.study.noise.trade_off import Stage, TradeOff, of_plan, of_recorded
from hvdtrain.engine.noise_scale import advice
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.ends import End, same
from hvdtrain.scaling.network import Cluster, Network
from hvdtrain.scaling.overlap import Group
from hvdtrain.scaling.profile import Calibration, Profile
from hvdtrain.scaling.wire import Wire
from tests.noise_runs import UPDATES, recorded_run

FAST = Network(1e9, 1.0, 0.0, local_bytes_per_s=1e18, local_latency_s=0.0, call_s=0.0)
"""Costs nothing."""
IMAGE_S = 0.001
SIZE = 1e8
"""Bytes of the gradients."""
PROFILE = Profile(32, 64, 64 * IMAGE_S, 0.0, (Group(SIZE, 0.0),))


class Proportional(Calibration):
    """Time in proportion to the images."""

    def profile(self, image_size: int, batch: int, accumulate: int, end: End) -> Profile:
        del image_size, end
        return PROFILE.with_batch(batch).accumulated(accumulate)


def predictor(sigma: float = 0.0) -> Predictor:
    """With a worker that makes as many images/s with any batch, at both ends."""
    return Predictor(Proportional([PROFILE], "made"), Wire(), same(sigma))


def plan(scale: float, batch: int = 64, updates: int = 1000) -> TradeOff:
    return of_plan([(Stage(32, batch), updates)], scale)


def asked(network: Network, scale: float, most: int = 32, gpus: int = 1, **how: float) -> Answer:
    own = Own(64, 1, Cluster(1, gpus, network))
    clusters = [Cluster(nodes, gpus, network) for nodes in doubling(most)]
    return answer(plan(scale, 64 * gpus), predictor(), own, clusters, **how)  # type: ignore[arg-type]


def test_the_trade_off_is_that_of_the_paper() -> None:
    for batch in (10, 300, 20000):
        found, expected = plan(1234.5, batch), advice(1234.5, batch)
        assert found.critical == pytest.approx(1234.5)
        [own] = [row for row in found.rows() if row["own"]]
        assert own["updates_over_fewest"] == pytest.approx(expected["steps_over_fewest"])
        assert own["images_over_fewest"] == pytest.approx(expected["images_over_fewest"])
        assert (own["updates_over_own"], own["images_over_own"]) == pytest.approx((1, 1))
        assert own["updates"] == pytest.approx(1000)
        doubled = found.updates_with(2 * batch) / found.updates
        assert doubled == pytest.approx(expected["doubling_steps"])
        for row in found.rows():
            product = (row["updates_over_fewest"] - 1) * (row["images_over_fewest"] - 1)
            assert product == pytest.approx(1)


def test_a_noise_scale_that_grows_weighs_by_progress(tmp_path: Path) -> None:
    """Two reports of 10 updates each, at noise scales 64 and 192 with batch 64: 1/2 and 1/4 of the progress."""
    run = recorded_run(tmp_path / "run", [64.0, 192.0])
    found = of_recorded(read_recorded(run))
    assert found.fewest.updates == pytest.approx(UPDATES * (1 / 2 + 1 / 4))
    assert found.fewest.images == pytest.approx(UPDATES * (64 / 2 + 192 / 4))
    assert found.critical == pytest.approx(80 / 0.75)
    assert found.updates_with(64) == pytest.approx(2 * UPDATES)
    each = [UPDATES * (1 + b / 128) / (1 + b / 64) for b in (64, 192)]
    assert found.updates_with(128) == pytest.approx(sum(each))


def test_updates_without_a_noise_scale_count_as_the_others(tmp_path: Path) -> None:
    sizes = [32, 32, 64, 64]
    run = recorded_run(tmp_path / "run", [100.0, None, 300.0, 300.0], sizes=sizes)
    found = of_recorded(read_recorded(run))
    assert found.updates_with(64) == pytest.approx(4 * UPDATES)
    whole = recorded_run(tmp_path / "whole", [100.0, 100.0, 300.0, 300.0], sizes=sizes)
    assert found.by_size[32] == of_recorded(read_recorded(whole)).by_size[32]
    none = recorded_run(tmp_path / "none", [100.0, 100.0, None, None], sizes=sizes)
    assert of_recorded(read_recorded(none)).updates_with(64) == pytest.approx(4 * UPDATES)


def test_on_a_free_network_time_follows_the_trade_off() -> None:
    """Batch b on n nodes takes (S_min + E_min / b) · b/n · the time of an image: smaller batches are always
    faster, down to a quarter of the run's images per rank."""
    scale = 512.0
    found = asked(FAST, scale)
    for offer in found.offers:
        updates = 1000 * (1 + scale / offer.batch) / (1 + scale / 64)
        assert offer.updates == pytest.approx(updates)
        assert offer.seconds.slow == pytest.approx(updates * offer.batch / offer.nodes * IMAGE_S)
        assert offer.efficiency.slow == pytest.approx(1)
        assert offer.batch == offer.batch_per_worker * offer.accumulate * offer.ranks
        assert 16 <= offer.batch_per_worker <= 64
    assert {offer.batch_per_worker * offer.accumulate for offer in found.fastest} == {16}
    assert found.own.seconds.slow == pytest.approx(1000 * 64 * IMAGE_S)
    assert [offer.batch for offer in found.same_share] == [64 * n for n in (1, 2, 4, 8, 16, 32)]
    assert found.cheapest is found.fastest[0]


def test_more_nodes_stop_paying_where_the_noise_ends() -> None:
    """With 16 images per rank, n nodes take S_min · 16 + E_min / n: each doubling saves less."""
    scale = 64.0
    found = asked(FAST, scale)
    times = [16 + scale / nodes for nodes in (1, 2, 4, 8, 16, 32)]
    saved = [1 - b / a for a, b in pairwise(times)]
    assert found.saved == [None, *map(pytest.approx, saved)]
    assert found.advised.nodes == 8
    assert saved[2] >= 0.2 > saved[3]
    assert asked(FAST, scale, least_saving=0.15).advised.nodes == 16
    assert asked(FAST, scale, least_saving=0.05).advised.nodes == 32
    assert asked(FAST, scale, least_saving=0.6).advised.nodes == 1
    assert found.faster(found.advised).slow == pytest.approx((64 + scale) / times[3])
    assert found.dearer(found.advised).slow == pytest.approx(8 * times[3] / (64 + scale))


def test_a_second_node_that_saves_little_does_not_end_the_search() -> None:
    """From the second node on gradients are sent, 0.1 to 0.2 s a step: it saves little, the next ones much."""
    link = Network(8.0, 1.0, 0.0, local_bytes_per_s=1e18, local_latency_s=0.0, call_s=0.0)
    found = asked(link, 2048.0)
    second, *others = [share for share in found.saved if share is not None]
    assert second < 0.2 < min(others)
    assert found.advised.nodes == 32
    assert asked(link, 2048.0, most=2).advised.nodes == 1


def test_a_slow_link_asks_for_larger_batches() -> None:
    slow = Network(1.0, 1.0, 0.0, local_bytes_per_s=1e18, local_latency_s=0.0, call_s=0.0)
    found = asked(slow, 4096.0)
    fast = asked(FAST, 4096.0)
    for on_slow, on_fast in zip(found.fastest[1:], fast.fastest[1:], strict=True):
        assert on_slow.batch > on_fast.batch
        assert on_slow.seconds.slow > on_fast.seconds.slow
    two = found.fastest[1]
    step_s = two.batch / 2 * IMAGE_S + SIZE / 125e6  # a ring of two sends every byte once
    assert two.seconds.slow == pytest.approx(two.updates * step_s)
    assert two.efficiency.slow == pytest.approx(two.batch / 2 * IMAGE_S / step_s)
    assert two.accumulate > 1
    everything = [offer_of(plan(4096.0), predictor(), Cluster(2, 1, slow), *share)
                  for share in shares(2, 64, 1, 16 * 4096)]  # fmt: skip
    assert two.seconds.slow == min(each.seconds.slow for each in everything)


def test_shares_are_powers_of_two_and_the_runs_own() -> None:
    found = shares(2, 96, 1, 1000)
    assert [2 * micro * times for micro, times in found] == [
        48,
        64,
        96,
        128,
        192,
        256,
        384,
        512,
        768,
    ]
    assert all(24 <= micro <= 96 for micro, _times in found)
    assert shares(3, 8, 2, 100) == [(4, 1), (8, 1), (8, 2), (8, 4)]
    assert shares(64, 64, 1, 100) == []
    assert doubling(20) == [1, 2, 4, 8, 16]


def test_batches_end_at_the_dataset_and_far_above_the_critical_batch() -> None:
    assert max(offer.batch for offer in asked(FAST, 64.0, most=1).offers) == 16 * 64
    assert max(offer.batch for offer in asked(FAST, 64.0, most=1, images=300).offers) == 256
    with pytest.raises(
        ConfigError, match="128 ranks of 128 nodes cannot share a batch of up to 1,024"
    ):
        asked(FAST, 64.0, most=128)


def test_what_is_advised_holds_at_the_slow_end() -> None:
    """A link of which gradients get a half to all: times have two ends, the choice is that of the slow one."""
    link = Network(8.0, 1.0, 0.0, local_bytes_per_s=1e18, local_latency_s=0.0, call_s=0.0)
    wide = asked(replace(link, least_efficiency=0.5), 2048.0)
    slow = asked(replace(link, efficiency=0.5), 2048.0)
    fast = asked(link, 2048.0)
    for found, at_worst, at_best in zip(wide.offers, slow.offers, fast.offers, strict=True):
        assert found.seconds.pair() == (at_best.seconds.fast, at_worst.seconds.slow)
    assert wide.advised.nodes == slow.advised.nodes
    assert [o.batch for o in wide.fastest] == [o.batch for o in slow.fastest]
    assert wide.saved == slow.saved
    two = wide.fastest[1]
    assert two.seconds.fast < two.seconds.slow
    faster = wide.faster(two)
    assert faster.slow == pytest.approx(wide.own.seconds.slow / two.seconds.slow)
    assert faster.slow < faster.fast
    row = two.as_dict()
    assert (row["seconds_low"], row["seconds_high"]) == two.seconds.pair()
    assert row["node_hours_high"] == pytest.approx(2 * two.seconds.slow / 3600)
