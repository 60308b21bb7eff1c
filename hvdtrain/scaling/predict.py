"""Predicts step time, efficiency, images/s, hours and dollars of a plan on nodes with given links.

Each figure has two ends, fast and slow (`ends.py`). Pure arithmetic: does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import make_plan
from hvdtrain.scaling.ends import End, Ends, both
from hvdtrain.scaling.network import Cluster
from hvdtrain.scaling.overlap import SIGMA, Group, Step, make_step
from hvdtrain.scaling.profile import Profile
from hvdtrain.scaling.wire import Wire, wire_of

ProfileOf = Callable[[int, int, int, End], Profile]
"""Image size, images of one micro-batch, micro-batches of one update, end → one worker's profile."""
_MOST_BATCH = 2**20


@dataclass(frozen=True)
class Setting:
    """Image size and batch of some epochs."""

    image_size: int
    batch: int
    """Images of one micro-batch on one rank."""
    accumulate: int
    """Micro-batches of one update."""


@dataclass(frozen=True)
class PhasePoint:
    """One setting on one cluster."""

    setting: Setting
    step: Ends[Step]
    images: int
    """Of one update on the whole cluster."""
    link_bytes: float
    """That one host's link sends in an update, without headers."""
    link_bytes_per_s: float
    """Speed of the link, all of it."""
    guessed: bool
    """Whether the profile was measured at another image size."""

    @property
    def images_per_s(self) -> Ends[float]:
        """Of the whole cluster."""
        return self.step.map(lambda step: self.images / step.seconds)

    @property
    def link_share(self) -> Ends[float]:
        """Share of the step in which the link would be busy at its full speed, 0-1."""
        busy_s = self.link_bytes / self.link_bytes_per_s
        return self.step.map(lambda step: busy_s / step.seconds)


@dataclass(frozen=True)
class Point:
    """The whole plan on one cluster: only training, without evaluation and start-up."""

    cluster: Cluster
    phases: list[PhasePoint]
    seconds: Ends[float]
    efficiency: Ends[float]
    """Of the whole plan, 0-1."""
    dollars: Ends[float] | None


def update(profile: Profile, cluster: Cluster, wire: Wire, sigma: float) -> Step:
    """One update. Second sums, which PowerSGD needs, start after the backward pass and all first ones."""
    began = profile.step_s - profile.backward_s
    sums = [wire.sums(group) for group in profile.groups]
    pairs = zip(sums, profile.groups, strict=True)
    groups = [Group(first, began + g.release_s) for (first, _), g in pairs]
    seconds = [Group(second, profile.step_s) for _, second in sums if second]
    return make_step(
        [*groups, *seconds],
        cluster.allreduce_s,
        compute_s=profile.step_s,
        backward_end_s=profile.step_s,
        ranks=cluster.ranks,
        sigma=sigma,
    )


def predict(
    cfg: Config,
    profile_of: ProfileOf,
    cluster: Cluster,
    *,
    num_samples: int | None = None,
    price_per_node_hour: float | None = None,
    sigma: Ends[float] = SIGMA,
) -> Point:
    """The plan of `cfg` on `cluster`; raises ConfigError if there is none for its world size."""
    plan = make_plan(cfg, cluster.ranks, num_samples)
    phases: dict[Setting, PhasePoint] = {}
    steps: dict[Setting, int] = {}
    for epoch in plan.epochs:
        setting = Setting(epoch.image_size, epoch.batch_per_worker, epoch.accumulate)
        if setting not in phases:
            phases[setting] = _phase(setting, profile_of, cluster, wire_of(cfg), sigma)
        steps[setting] = steps.get(setting, 0) + epoch.steps

    def seconds(end: End) -> float:
        return sum(count * phases[s].step.at(end).seconds for s, count in steps.items())

    def alone(end: End) -> float:
        return sum(count * phases[s].step.at(end).compute_s for s, count in steps.items())

    whole = both(seconds)
    dollars = None
    if price_per_node_hour is not None:
        per_second = cluster.hosts * price_per_node_hour / 3600
        dollars = whole.map(lambda s: s * per_second)
    efficiency = both(lambda end: alone(end) / whole.at(end))
    return Point(cluster, list(phases.values()), whole, efficiency, dollars)


def predict_all(
    cfg: Config,
    profile_of: ProfileOf,
    clusters: Sequence[Cluster],
    *,
    num_samples: int | None = None,
    price_per_node_hour: float | None = None,
    sigma: Ends[float] = SIGMA,
) -> tuple[list[Point], list[str]]:
    """`predict` on each cluster; and why there is no plan for some of them, one line per number of
    nodes. Raises ConfigError if there is no plan for any."""
    points: list[Point] = []
    without: dict[int, str] = {}
    for cluster in clusters:
        try:
            point = predict(
                cfg,
                profile_of,
                cluster,
                num_samples=num_samples,
                price_per_node_hour=price_per_node_hour,
                sigma=sigma,
            )
        except ConfigError as error:
            without[cluster.hosts] = f"{cluster.hosts} nodes: {error}"
        else:
            points.append(point)
    if not points:
        raise ConfigError(next(iter(without.values())))
    return points, list(without.values())


def _phase(
    setting: Setting, profile_of: ProfileOf, cluster: Cluster, wire: Wire, sigma: Ends[float]
) -> PhasePoint:
    profiles = both(lambda end: profile_at(profile_of, setting, end))
    step = both(lambda end: update(profiles.at(end), cluster.at(end), wire, sigma.at(end)))
    images = setting.batch * setting.accumulate * cluster.ranks
    sent = cluster.host_bytes(wire.total(profiles.fast.groups))
    speed = cluster.network.link_gbit * 1e9 / 8
    return PhasePoint(setting, step, images, sent, speed, profiles.fast.guessed)


def profile_at(profile_of: ProfileOf, setting: Setting, end: End) -> Profile:
    """One worker's profile for `setting` at one end."""
    return profile_of(setting.image_size, setting.batch, setting.accumulate, end)


@dataclass(frozen=True)
class Advice:
    """What one setting needs to reach a target efficiency on one cluster; None: not possible."""

    cluster: Cluster
    setting: Setting
    efficiency: float
    """Without a change."""
    batch: int | None
    """The smallest micro-batch that suffices, at least that of the setting."""
    accumulate: int | None
    """Or: the smallest number of micro-batches per update, at least that of the setting."""
    link_gbit: float | None
    """Or: the slowest link that suffices without another change."""


def advise(
    setting: Setting,
    profile: Profile,
    cluster: Cluster,
    *,
    wire: Wire,
    target: float,
    sigma: float,
) -> Advice:
    """How `setting` reaches efficiency `target` (0-1) on `cluster`, at one end."""

    def with_batch(images: int) -> float:
        return update(profile.with_batch(images), cluster, wire, sigma).efficiency

    def with_steps(times: int) -> float:
        return update(profile.accumulated(times), cluster, wire, sigma).efficiency

    def with_link(megabits: int) -> float:
        faster = _with_link(cluster, megabits / 1000)
        return update(profile, faster, wire, sigma).efficiency

    megabits = _smallest(with_link, target, 1, 10**7)
    return Advice(
        cluster,
        setting,
        update(profile, cluster, wire, sigma).efficiency,
        _smallest(with_batch, target, setting.batch, _MOST_BATCH),
        _smallest(with_steps, target, setting.accumulate, _MOST_BATCH),
        None if megabits is None else megabits / 1000,
    )


def advise_all(
    cfg: Config,
    profile_of: ProfileOf,
    points: Sequence[Point],
    *,
    target: float,
    sigma: Ends[float] = SIGMA,
) -> list[Ends[Advice]]:
    """`advise` for each setting and link, at the largest number of nodes among `points`."""
    largest = max(point.cluster.hosts for point in points)

    def at_both(setting: Setting, cluster: Cluster) -> Ends[Advice]:
        return both(
            lambda end: advise(
                setting,
                profile_at(profile_of, setting, end),
                cluster.at(end),
                wire=wire_of(cfg),
                target=target,
                sigma=sigma.at(end),
            )
        )

    return [
        at_both(phase.setting, point.cluster)
        for point in points
        if point.cluster.hosts == largest
        for phase in point.phases
    ]


def _with_link(cluster: Cluster, gbit: float) -> Cluster:
    return replace(cluster, network=replace(cluster.network, link_gbit=gbit))


def _smallest(
    efficiency: Callable[[int], float], target: float, least: int, most: int
) -> int | None:
    """The smallest integer with at least `target`; `efficiency` must not fall with it."""
    if efficiency(most) < target:
        return None
    low, high = least - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if efficiency(middle) >= target:
            high = middle
        else:
            low = middle
    return high


def parse_numbers(text: str, option: str, *, whole: bool) -> list[float]:
    """The numbers in a list like `1,2,4`; raises ConfigError naming the option."""
    kind = "whole numbers from 1 up" if whole else "numbers above 0"
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    good = [0 < x < math.inf and (not whole or x == int(x)) for x in numbers]
    if not numbers or not all(good):
        raise ConfigError(f"{option} {text}: expected {kind} with commas, for example 1,2,4")
    return numbers
