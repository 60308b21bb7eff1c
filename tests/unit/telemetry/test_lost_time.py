"""Lost time is split by cause, and the parts add up."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.scaling.ring import efficiency_ceiling, ring_seconds
from hvdtrain.telemetry.lost_time import (
    CAUSES,
    LostTime,
    computing_s,
    lost_time,
    network_text,
    sentence,
)

WORKER_STEP_S = 0.1
HOSTS = ["a", "a", "b", "b"]


def steps(
    ranks: int = 4,
    count: int = 20,
    *,
    data: dict[int, float] | float = 0.0,
    compute: dict[int, float] | float = 0.0,
    network: float = 0.0,
) -> LostTime:
    """Steps of WORKER_STEP_S plus these seconds: of data and computing by rank, and of the network."""

    def by_rank(more: dict[int, float] | float) -> np.ndarray:
        values = [more.get(r, 0.0) if isinstance(more, dict) else more for r in range(ranks)]
        return np.repeat(np.array(values)[:, None], count, axis=1)

    data_s = by_rank(data)
    ready = data_s + WORKER_STEP_S + by_rank(compute)
    step_s = np.broadcast_to(ready.max(axis=0) + network, ready.shape)
    return lost_time(step_s, data_s, step_s - ready, WORKER_STEP_S * count)


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
@pytest.mark.parametrize(
    ("cause", "injected"),
    [
        ("data", {"data": 0.05}),
        ("communication", {"network": 0.05}),
        ("straggling", {"compute": {1: 0.05}}),
        ("straggling", {"data": {1: 0.05}}),
        ("other", {"compute": 0.05}),
    ],
)
def test_each_single_cause_is_found(ranks: int, cause: str, injected: dict) -> None:
    lost = steps(ranks, **injected)
    assert lost.seconds == pytest.approx(20 * 0.15)
    assert lost.by_cause == pytest.approx({c: 20 * 0.05 * (c == cause) for c in CAUSES})
    assert lost.ratios[cause] == pytest.approx(1 / 3)
    assert lost.cause == cause


def test_causes_add_up_whatever_happens() -> None:
    rng = np.random.default_rng(0)
    for ranks in (2, 5):
        data_s, wait_s = rng.exponential(0.02, (2, ranks, 50))
        ready = data_s + rng.uniform(0.08, 0.2, (ranks, 50))
        step_s = np.broadcast_to((ready + wait_s).max(axis=0), ready.shape)
        lost = lost_time(step_s, data_s, step_s - ready, 50 * 0.1)
        assert sum(lost.by_cause.values()) == pytest.approx(step_s[0].sum() - 50 * 0.1)
        assert lost.late_s.max() <= lost.by_cause["straggling"] + 1e-12
        assert (lost.late_data <= lost.late_s + 1e-12).all()


def test_without_a_baseline_what_the_typical_rank_computes_is_ideal() -> None:
    data_s = np.array([[0.1, 0.2], [0.0, 0.0], [0.0, 0.0]])
    wait_s = np.array([[0.5, 0.4], [0.6, 0.6], [0.1, 0.1]])
    step_s = np.full((3, 2), 1.0)
    lost = lost_time(step_s, data_s, wait_s, computing_s(step_s, data_s, wait_s))
    assert lost.ideal_s == pytest.approx(2 - 0.9 - 0.3)  # rank 0 is the typical one
    assert lost.by_cause["other"] == pytest.approx(0)
    assert lost.by_cause["data"] == pytest.approx(0.3)
    assert lost.by_cause["communication"] == pytest.approx(0.2)
    assert lost.by_cause["straggling"] == pytest.approx(0.7)


def test_a_rank_that_begins_its_step_late_is_a_straggler() -> None:
    """Rank 0 has written a checkpoint before its step began, so its own times do not show it."""
    ready = np.full((4, 10), WORKER_STEP_S)
    wait_s = np.full((4, 10), 0.01)
    wait_s[1:, 0] += 0.4
    lost = lost_time(ready + wait_s, np.zeros_like(ready), wait_s, 10 * WORKER_STEP_S)
    assert lost.by_cause["communication"] == pytest.approx(10 * 0.01)
    assert lost.by_cause["straggling"] == pytest.approx(0.4 * 3 / 4)
    assert lost.straggler == 0


def test_the_sentence_names_rank_host_and_reason() -> None:
    assert sentence(steps(compute={2: 0.1}), HOSTS) == (
        "50% of the time is lost, 50% waiting for rank 2 on b, which computes slowly"
    )
    assert sentence(steps(data={3: 0.1}), HOSTS) == (
        "50% of the time is lost, 50% waiting for rank 3 on b, which waits for images"
    )
    assert sentence(steps(data=0.1, network=0.05), HOSTS) == (
        "60% of the time is lost, 40% waiting for images on all ranks"
    )
    assert sentence(steps(network=0.1), HOSTS, "what is known") == (
        "50% of the time is lost, 50% waiting for the network; what is known"
    )
    assert sentence(steps(network=0.1), HOSTS) == (
        "50% of the time is lost, 50% waiting for the network"
    )
    assert sentence(steps(compute=0.1), HOSTS) == (
        "50% of the time is lost, 50% because ranks compute slower together than a single worker"
    )
    assert sentence(steps(network=0.004), HOSTS) is None
    faster = steps(compute=-0.05)
    assert faster.cause is None
    assert sentence(faster, HOSTS).startswith("faster than the baseline")  # type: ignore[union-attr]


def test_ranks_that_are_late_in_turn_are_not_stragglers() -> None:
    ready = np.full((4, 40), WORKER_STEP_S)
    for step in range(40):
        ready[step % 4, step] += 0.1
    step_s = np.broadcast_to(ready.max(axis=0), ready.shape)
    lost = lost_time(step_s, np.zeros_like(ready), step_s - ready, 40 * WORKER_STEP_S)
    assert lost.cause == "straggling"
    assert lost.straggler is None
    assert (
        sentence(lost, HOSTS)
        == "50% of the time is lost, 38% because ranks wait for each other in turn"
    )


def test_what_is_known_about_the_network() -> None:
    """Ranks 0 and 2 have the values of their machines, a and b; the other ranks have 0."""

    def text(speeds: tuple[float, float], resent: tuple[float, float], *ceiling: float) -> str:
        arrays = [np.array([a, 0.0, b, 0.0]) for a, b in (speeds, resent)]
        return network_text(*arrays, HOSTS, *(ceiling or [None]))  # type: ignore[arg-type]

    fast = 25e9 / 8
    assert text((fast, fast), (0, 0.001)) == ""
    assert text((fast, fast), (0, 0.001), 0.64) == "the link allows an efficiency of 64%"
    assert text((0, 0), (0, 0)) == ""
    assert text((fast, fast / 25), (0, 0)) == "the link of b runs at 1 Gbit/s, others at 25 Gbit/s"
    assert text((fast, fast), (0.03, 0.02)) == ""  # on all machines
    lossy = "a sends 3.0% of its packets again: check cable, card and switch"
    assert text((fast, fast), (0.03, 0.001), 0.64) == lossy


def test_padding_is_a_cause_of_its_own() -> None:
    step_s = np.full((2, 4), 0.1)
    zero = np.zeros((2, 4))
    lost = lost_time(step_s, zero, zero, 0.3, 0.1)
    assert lost.by_cause["padding"] == pytest.approx(0.1)
    assert lost.by_cause["other"] == pytest.approx(0.0)
    assert lost.cause == "padding"
    assert "padding of the last batch" in sentence(lost, ["a", "a"])  # type: ignore[operator]


def test_several_slow_ranks_are_named() -> None:
    def text(*slow: int, hosts: list[str] = HOSTS) -> str | None:
        ready = np.full((len(hosts), 40), WORKER_STEP_S)
        ready[list(slow)] += 0.1
        ready[slow[-1]] += 1e-6  # one of them is always last
        step_s = np.broadcast_to(ready.max(axis=0), ready.shape)
        lost = lost_time(step_s, np.zeros_like(ready), step_s - ready, 40 * WORKER_STEP_S)
        assert lost.stragglers == list(slow)
        assert lost.straggler is None
        return sentence(lost, hosts)

    begin = "50% of the time is lost, 50% waiting for "
    assert text(2, 3) == f"{begin}the ranks on b, which compute slowly"
    assert text(1, 3) == f"{begin}rank 1 on a and rank 3 on b, which compute slowly"
    many = [*"aabbbbb"]
    assert text(0, 2, hosts=many) == f"{begin}rank 0 on a and rank 2 on b, which compute slowly"
    many = [*"aaaabbbbb"]
    assert text(3, 4, 5, 6, hosts=many) == f"{begin}4 ranks on 2 machines, which compute slowly"


def test_the_rings_cost_and_ceiling() -> None:
    # 102 MB on 25 Gbit/s: 4 ranks move 2 * 3/4 of it.
    assert ring_seconds(102e6, 4, 25e9 / 8) == pytest.approx(0.04896)
    assert efficiency_ceiling(0.08, 0.05, 0.04896) == 1.0  # hidden behind backward
    assert efficiency_ceiling(0.08, 0.05, 0.13) == pytest.approx(0.5)
