"""Which batch on how many nodes: the trade-off of the noise scale, times the predicted time of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hvdtrain.analysis.study.noise.trade_off import TradeOff
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.ends import End, Ends, both, keys
from hvdtrain.scaling.network import Cluster
from hvdtrain.scaling.overlap import SIGMA, Step
from hvdtrain.scaling.predict import Setting, profile_at, update
from hvdtrain.scaling.profile import Calibration
from hvdtrain.scaling.wire import Wire

SMALLEST = 4
"""A rank has at least the run's images per update, and per forward pass, divided by this: with fewer, a worker
makes fewer images/s than was measured, and the prediction would be too good."""
LARGEST = 16
"""Times the critical batch: a larger one saves hardly any update."""


@dataclass(frozen=True)
class Own:
    """How the run trains."""

    batch_per_worker: int
    """Images of one forward pass on one rank, the fewest of its phases: so many fit into the memory."""
    accumulate: int
    """Forward passes of one update."""
    cluster: Cluster
    """Its nodes and ranks, with the link in question."""


@dataclass(frozen=True)
class Offer:
    """A batch on a number of nodes."""

    nodes: int
    ranks: int
    batch: int
    """Global, in images."""
    batch_per_worker: int
    accumulate: int
    updates: float
    """To the loss of the run."""
    seconds: Ends[float]
    """Of these updates: training steps alone."""
    efficiency: Ends[float]
    """Scaling efficiency, 0-1."""

    @property
    def node_hours(self) -> Ends[float]:
        """Time of all nodes."""
        return self.seconds.map(lambda s: s * self.nodes / 3600)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {
            "nodes": self.nodes,
            "ranks": self.ranks,
            "batch": self.batch,
            "batch_per_worker": self.batch_per_worker,
            "accumulate": self.accumulate,
            "updates": self.updates,
            **keys("seconds", self.seconds),
            **keys("efficiency", self.efficiency),
            **keys("node_hours", self.node_hours),
        }


@dataclass(frozen=True)
class Answer:
    """For one link. What is chosen is chosen by the slow end of the prediction."""

    link_gbit: float
    own: Offer
    """The run as it is."""
    fastest: list[Offer]
    """For each number of nodes, rising."""
    same_share: list[Offer]
    """The same with as many images per rank as the run has."""
    offers: list[Offer]
    """All that were compared."""
    sigma: Ends[float]
    """Spread of a rank's step times that was assumed."""
    least_saving: float
    """Share of the time that twice the nodes must save to pay, 0-1."""
    bounds: tuple[float, float] | None = None
    """Of `faster(advised)`, over the interval of a measured noise scale."""

    @property
    def cheapest(self) -> Offer:
        """The fewest node-hours; of equal ones the fastest."""
        return min(self.offers, key=lambda offer: (offer.node_hours.slow, offer.seconds.slow))

    @property
    def saved(self) -> list[float | None]:
        """By each number of nodes against half as many: share of the time, at the slow end."""
        times = [offer.seconds.slow for offer in self.fastest]
        return [None, *(1 - more / less for less, more in pairwise(times))]

    @property
    def advised(self) -> Offer:
        """The fastest on the most nodes to which every doubling saves at least `least_saving`, on average.

        On average: the second node brings a link into play, and may save little where the next ones save much.
        """
        best = self.fastest[0]
        for more in self.fastest[1:]:
            doublings = math.log2(more.nodes / best.nodes)
            limit = best.seconds.slow * (1 - self.least_saving) ** doublings
            if more.seconds.slow <= limit:
                best = more
        return best

    def faster(self, offer: Offer) -> Ends[float]:
        """Time of the run as it is, divided by that of `offer`."""
        return both(lambda end: self.own.seconds.at(end) / offer.seconds.at(end))

    def dearer(self, offer: Offer) -> Ends[float]:
        """Node-hours of `offer`, divided by those of the run as it is."""
        return both(lambda end: offer.node_hours.at(end) / self.own.node_hours.at(end))


@dataclass(frozen=True)
class Predictor:
    """What the time of an update depends on."""

    speed: Calibration
    wire: Wire
    sigma: Ends[float] = SIGMA

    def step(self, cluster: Cluster, setting: Setting, end: End) -> Step:
        """One update at one end."""
        profile = profile_at(self.speed.profile, setting, end)
        return update(profile, cluster.at(end), self.wire, self.sigma.at(end))


def answer(
    trade_off: TradeOff,
    predictor: Predictor,
    own: Own,
    clusters: Sequence[Cluster],
    *,
    images: int | None = None,
    least_saving: float = 0.2,
) -> Answer:
    """Every batch on each of `clusters`, whose number of nodes doubles and whose link is one.

    `images`: of the dataset, the largest batch. Raises ConfigError where the ranks cannot share any batch.
    """
    most = _most(trade_off, images)
    fastest, same, offers = [], [], []
    for cluster in clusters:
        found = [
            offer_of(trade_off, predictor, cluster, *share)
            for share in shares(cluster.ranks, own.batch_per_worker, own.accumulate, most)
        ]
        if not found:
            raise ConfigError(
                f"--max-nodes: {cluster.ranks} ranks of {cluster.hosts} nodes cannot share a batch of up to "
                f"{most:,} images, the most that is useful or that there are: take fewer nodes"
            )
        offers += found
        fastest.append(min(found, key=lambda each: (each.seconds.slow, each.batch)))
        same.append(offer_of(trade_off, predictor, cluster, own.batch_per_worker, own.accumulate))
    as_it_is = _own_offer(trade_off, predictor, own)
    gbit = clusters[0].network.link_gbit
    return Answer(gbit, as_it_is, fastest, same, offers, predictor.sigma, least_saving)


def offer_of(
    trade_off: TradeOff, predictor: Predictor, cluster: Cluster, micro: int, times: int
) -> Offer:
    """A batch of `times` passes of `micro` images on each rank, throughout the training."""
    batch = micro * times * cluster.ranks
    updates = {
        size: fewest.updates + fewest.images / batch for size, fewest in trade_off.by_size.items()
    }
    steps = [(Setting(size, micro, times), count) for size, count in updates.items()]
    total = _Sum(predictor, cluster, steps)
    how = (cluster.hosts, cluster.ranks, batch, micro, times)
    return Offer(*how, trade_off.updates_with(batch), total.seconds, total.efficiency)


def _own_offer(trade_off: TradeOff, predictor: Predictor, own: Own) -> Offer:
    """The run's own batches, phase by phase."""
    cluster = own.cluster
    steps = []
    for stage, updates in trade_off.made.items():
        micro = max(1, round(stage.batch / cluster.ranks / own.accumulate))
        steps.append((Setting(stage.image_size, micro, own.accumulate), float(updates)))
    total = _Sum(predictor, cluster, steps)
    how = (cluster.hosts, cluster.ranks, round(trade_off.batch))
    share = (own.batch_per_worker, own.accumulate)
    return Offer(*how, *share, trade_off.updates, total.seconds, total.efficiency)


class _Sum:
    """Seconds and efficiency of updates of several kinds, each so many times."""

    def __init__(
        self, predictor: Predictor, cluster: Cluster, updates: Sequence[tuple[Setting, float]]
    ) -> None:
        def steps(end: End) -> list[tuple[Step, float]]:
            return [(predictor.step(cluster, each, end), count) for each, count in updates]

        found = both(steps)
        self.seconds = found.map(lambda made: sum(count * step.seconds for step, count in made))
        alone = found.map(lambda made: sum(count * step.compute_s for step, count in made))
        self.efficiency = both(lambda end: alone.at(end) / self.seconds.at(end))


def _most(trade_off: TradeOff, images: int | None) -> int:
    largest = max(LARGEST * trade_off.critical, trade_off.batch)
    return math.floor(min(largest, images or math.inf))


def shares(ranks: int, micro: int, accumulate: int, most: int) -> list[tuple[int, int]]:
    """Images of one pass on one rank and passes of one update, for every batch of up to `most` images.

    Batches are powers of two, and those of the run's own share of a rank, `micro` · `accumulate`, times a power
    of two. A pass has at most `micro` images: so many fit into the memory.
    """
    share = micro * accumulate
    powers = [2**power for power in range(max(1, most).bit_length())]
    own = [share * power for power in powers]
    own += [share // power for power in powers if share % power == 0]
    wanted = {batch // ranks for batch in powers if batch % ranks == 0} | set(own)
    found = []
    for each in sorted(wanted):
        times = next((t for t in range(-(-each // micro), each + 1) if each % t == 0), 1)
        enough = SMALLEST * each >= share and SMALLEST * (each // times) >= micro
        if enough and each * ranks <= most:
            found.append((each // times, times))
    return found


def doubling(most: int) -> list[int]:
    """1, 2, 4 … up to `most`."""
    return [2**power for power in range(most.bit_length())]
