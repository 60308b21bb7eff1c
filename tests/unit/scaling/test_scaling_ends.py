"""Both ends of a prediction: what is printed of them, and that none of them is beyond the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hvdtrain.scaling.ends import Ends, between, both, keys, low_high, same
from hvdtrain.scaling.inputs import clusters
from hvdtrain.scaling.overlap import sigmas, straggler
from hvdtrain.scaling.predict import update
from hvdtrain.scaling.profile import Calibration, hand_given
from hvdtrain.scaling.tables import late_ranks_allow, lost_to
from hvdtrain.scaling.wire import Wire


def test_a_range_is_written_from_low_to_high() -> None:
    ends = Ends(fast=0.9, slow=0.5)
    assert low_high(ends) == (0.5, 0.9)
    assert between(ends, ".0f", "%", 100) == "50–90%"
    assert between(ends.map(lambda x: 1 / x), ".2f", "×") == "1.11–2.00×"
    assert between(Ends(1.234, 1.231), ".2f", "×") == "1.23×"
    assert keys("step_s", Ends(2.0, 3.0)) == {"step_s_low": 2.0, "step_s_high": 3.0}
    assert keys("dollars", None) == {"dollars_low": None, "dollars_high": None}
    assert both(lambda end: end).pair() == ("fast", "slow")


def test_late_ranks_leave_what_the_straggler_does() -> None:
    assert late_ranks_allow(1024, same(0.03)).slow == pytest.approx(0.9, abs=1e-3)
    allowed = late_ranks_allow(1024, sigmas(None))
    assert allowed.pair() == (1 / straggler(1024, 0.005), 1 / straggler(1024, 0.04))
    assert late_ranks_allow(1, sigmas(None)) == same(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_slow_end_is_never_faster(seed: int) -> None:
    """Random workers at other sizes and batches, on random clusters, with and without given figures."""
    random = np.random.default_rng(seed)
    sizes = [96, 128, 224, 288]
    known = [
        replace(
            hand_given("resnet50", image_size=s, batch=64, step_s=1e-6 * s**2, group_bytes=2e7),
            batch=int(random.integers(8, 512)),
        )
        for s in random.choice(sizes, 2, replace=False).tolist()
    ]
    speed = Calibration(known, "")
    for _ in range(40):
        size, batch = int(random.choice(sizes)), int(random.integers(4, 1024))
        [cluster] = clusters(
            str(random.integers(1, 65)),
            int(random.integers(1, 9)),
            f"{random.uniform(1, 200)}",
            network="tcp" if random.random() < 0.7 else "rdma",
            efficiency=0.5 if random.random() < 0.3 else None,
        )
        sigma = sigmas(0.02 if random.random() < 0.3 else None)
        times = int(random.integers(1, 4))
        step = Ends(
            *(
                update(
                    speed.profile(size, batch, times, end),
                    cluster.at(end),
                    Wire(0.5),
                    sigma.at(end),
                )
                for end in ("fast", "slow")
            )
        )
        assert step.fast.seconds <= step.slow.seconds * (1 + 1e-12)
        assert lost_to(step) in ("gradients", "late ranks", "either", "-")
