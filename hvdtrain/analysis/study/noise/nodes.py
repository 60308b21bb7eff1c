"""Which batch on how many nodes: the trade-off of the noise scale, times the predicted time of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hvdtrain.analysis.study.noise.trade_off import TradeOff
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.network import Cluster
from hvdtrain.scaling.overlap import STRAGGLER_SIGMA, Step
from hvdtrain.scaling.predict import update
from hvdtrain.scaling.profile import Calibration

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
    seconds: float
    """Of these updates: training steps alone."""
    efficiency: float
    """Scaling efficiency, 0-1."""

    @property
    def node_hours(self) -> float:
        """Time of all nodes."""
        return self.seconds * self.nodes / 3600

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {**asdict(self), "node_hours": self.node_hours}


@dataclass(frozen=True)
class Answer:
    """For one link."""

    link_gbit: float
    own: Offer
    """The run as it is."""
    fastest: list[Offer]
    """For each number of nodes, rising."""
    same_share: list[Offer]
    """The same with as many images per rank as the run has."""
    offers: list[Offer]
    """All that were compared."""
    least_saving: float
    """Share of the time that twice the nodes must save to pay, 0-1."""
    bounds: tuple[float, float] | None = None
    """Of `faster(advised)`, over the interval of a measured noise scale."""

    @property
    def cheapest(self) -> Offer:
        """The fewest node-hours; of equal ones the fastest."""
        return min(self.offers, key=lambda offer: (offer.node_hours, offer.seconds))

    @property
    def saved(self) -> list[float | None]:
        """By each number of nodes against half as many: share of the time."""
        return [None, *(1 - more.seconds / less.seconds for less, more in pairwise(self.fastest))]

    @property
    def advised(self) -> Offer:
        """The fastest on the most nodes to which every doubling saves at least `least_saving`, on average.

        On average: the second node brings a link into play, and may save little where the next ones save much.
        """
        best = self.fastest[0]
        for more in self.fastest[1:]:
            doublings = math.log2(more.nodes / best.nodes)
            if more.seconds <= best.seconds * (1 - self.least_saving) ** doublings:
                best = more
        return best

    def faster(self, offer: Offer) -> float:
        """Time of the run as it is, divided by that of `offer`."""
        return self.own.seconds / offer.seconds

    def dearer(self, offer: Offer) -> float:
        """Node-hours of `offer`, divided by those of the run as it is."""
        return offer.node_hours / self.own.node_hours


@dataclass(frozen=True)
class Predictor:
    """What the time of an update depends on."""

    speed: Calibration
    wire: float
    """Bytes sent ÷ bytes in fp32."""
    sigma: float = STRAGGLER_SIGMA

    def step(self, cluster: Cluster, image_size: int, micro: int, times: int) -> Step:
        """An update of `times` passes of `micro` images on each rank."""
        return update(self.speed.profile(image_size, micro, times), cluster, self.wire, self.sigma)


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
        fastest.append(min(found, key=lambda each: (each.seconds, each.batch)))
        same.append(offer_of(trade_off, predictor, cluster, own.batch_per_worker, own.accumulate))
    as_it_is = _own_offer(trade_off, predictor, own)
    gbit = clusters[0].network.link_gbit
    return Answer(gbit, as_it_is, fastest, same, offers, least_saving)


def offer_of(
    trade_off: TradeOff, predictor: Predictor, cluster: Cluster, micro: int, times: int
) -> Offer:
    """A batch of `times` passes of `micro` images on each rank, throughout the training."""
    batch = micro * times * cluster.ranks
    seconds = alone = 0.0
    for size, fewest in trade_off.by_size.items():
        step = predictor.step(cluster, size, micro, times)
        updates = fewest.updates + fewest.images / batch
        seconds += updates * step.seconds
        alone += updates * step.compute_s
    how = (cluster.hosts, cluster.ranks, batch, micro, times)
    return Offer(*how, trade_off.updates_with(batch), seconds, alone / seconds)


def _own_offer(trade_off: TradeOff, predictor: Predictor, own: Own) -> Offer:
    """The run's own batches, phase by phase."""
    seconds = alone = 0.0
    for stage, updates in trade_off.made.items():
        micro = max(1, round(stage.batch / own.cluster.ranks / own.accumulate))
        step = predictor.step(own.cluster, stage.image_size, micro, own.accumulate)
        seconds += updates * step.seconds
        alone += updates * step.compute_s
    how = (own.cluster.hosts, own.cluster.ranks, round(trade_off.batch))
    share = (own.batch_per_worker, own.accumulate)
    return Offer(*how, *share, trade_off.updates, seconds, alone / seconds)


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
