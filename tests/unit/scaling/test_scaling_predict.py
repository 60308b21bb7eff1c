"""Profiles, the prediction of a plan, and the advice equal sums by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.plan.epochs import make_plan
from hvdtrain.scaling.ends import Ends, both, same
from hvdtrain.scaling.network import NETWORKS, Cluster, Network
from hvdtrain.scaling.overlap import SIGMA, Group, straggler
from hvdtrain.scaling.predict import Setting, advise, advise_all, predict, update
from hvdtrain.scaling.profile import (
    BY_PIXELS,
    FIXED,
    Calibration,
    Profile,
    hand_given,
    read_calibration,
)
from hvdtrain.scaling.wire import Wire

CONFIG = """
data: {train_size: 100000}
model: {name: resnet50, num_classes: 1000}
phases:
  - {epochs: 2, image_size: 128, batch_per_worker: 32}
  - {epochs: 1, image_size: 224, batch_per_worker: 16}
train: {accumulate: ACCUMULATE}
comm: {compression: COMPRESSION}
"""
NET = Network(link_gbit=8.0, efficiency=1.0, latency_s=0.0, call_s=0.0)
PROFILE = Profile(128, 32, 0.3, 0.2, (Group(1e8, 0.05), Group(1e8, 0.2)))


def config(accumulate: int = 1, compression: str = "none") -> Config:
    text = CONFIG.replace("ACCUMULATE", str(accumulate)).replace("COMPRESSION", compression)
    return parse_config(text)


def test_an_update_by_hand() -> None:
    """1 GB/s, two ranks: a message takes as many seconds as it has gigabytes."""
    pair = Cluster(2, 1, NET)
    step = update(PROFILE, pair, Wire(), 0.0)
    assert step.exposed_s == pytest.approx(0.1)  # of the second one, after the backward pass
    assert step.seconds == pytest.approx(0.4)
    slow = Cluster(2, 1, replace(NET, link_gbit=2.0))
    # 0.15 + 0.4 + 0.4 from the start of the step, of which 0.3 compute
    assert update(PROFILE, slow, Wire(), 0.0).exposed_s == pytest.approx(0.65)
    assert update(PROFILE, slow, Wire(0.5), 0.0).exposed_s == pytest.approx(0.25)
    late_s = 0.3 * (straggler(2, 0.1) - 1)
    assert update(PROFILE, pair, Wire(), 0.1).late_s == pytest.approx(late_s)


def test_larger_micro_batches_hide_communication_and_more_of_them_do_not() -> None:
    slow = Cluster(2, 1, replace(NET, link_gbit=2.0))
    often = PROFILE.accumulated(4)
    assert often.step_s == pytest.approx(1.2)
    assert update(often, slow, Wire(), 0.0).exposed_s == pytest.approx(0.65)
    large = PROFILE.with_batch(128)
    assert (large.batch, large.step_s, large.backward_s) == pytest.approx((128, 1.2, 0.8))
    assert update(large, slow, Wire(), 0.0).exposed_s == pytest.approx(0.4)


@pytest.mark.parametrize(("accumulate", "compression"), [(1, "none"), (3, "fp16")])
def test_a_plan_is_the_sum_of_its_steps(accumulate: int, compression: str) -> None:
    cluster = Cluster(4, 2, NET)
    calibration = Calibration(
        [
            hand_given("resnet50", image_size=128, batch=32, step_s=0.1, group_bytes=1e7),
            hand_given("resnet50", image_size=224, batch=16, step_s=0.15, group_bytes=1e7),
        ],
        "",
    )
    cfg = config(accumulate, compression)
    point = predict(cfg, calibration.profile, cluster, price_per_node_hour=10.0)
    plan = make_plan(cfg, 8)
    wire = 1.0 if compression == "none" else 0.5
    steps = both(
        lambda end: [
            update(profile.accumulated(accumulate), cluster, Wire(wire), SIGMA.at(end))
            for profile in calibration.profiles
        ]
    )
    expected = steps.map(
        lambda made: sum(e.steps * made[e.image_size == 224].seconds for e in plan.epochs)
    )
    assert point.seconds.fast < point.seconds.slow
    assert point.seconds.pair() == pytest.approx(expected.pair())
    assert point.dollars is not None
    assert point.dollars.slow == pytest.approx(expected.slow / 3600 * 4 * 10)
    assert [p.setting for p in point.phases] == [
        Setting(128, 32, accumulate),
        Setting(224, 16, accumulate),
    ]
    first = point.phases[0]
    images = 8 * 32 * accumulate
    assert first.images_per_s.slow == pytest.approx(images / steps.slow[0].seconds)
    assert first.step.slow.efficiency == pytest.approx(
        first.images_per_s.slow / 8 / (32 / 0.1)  # relative to eight without communication
    )
    sent = 2 * 7 / 8 * 25_557_032 * 4 * wire
    assert first.link_share.fast == pytest.approx(sent / 1e9 / steps.fast[0].seconds)


def test_a_range_ends_where_all_that_is_assumed_does() -> None:
    """The share of the link, and the spread of the steps; given figures leave no range."""
    tcp = Cluster(4, 2, replace(NETWORKS["tcp"], link_gbit=1.0))
    worker = hand_given("resnet50", image_size=128, batch=32, step_s=0.1, group_bytes=1e7)
    other = hand_given("resnet50", image_size=224, batch=16, step_s=0.15, group_bytes=1e7)
    speed, cfg = Calibration([worker, other], "").profile, config()
    step = predict(cfg, speed, tcp).phases[0].step
    for end in ("fast", "slow"):
        share = 0.7 if end == "fast" else 0.35
        own = replace(tcp, network=replace(NETWORKS["tcp"], link_gbit=1.0, efficiency=share))
        assert step.at(end) == update(worker, own, Wire(), SIGMA.at(end))
    known = replace(tcp, network=replace(tcp.network, least_efficiency=None))
    measured = predict(cfg, speed, known, sigma=same(0.01))
    assert measured.seconds.fast == measured.seconds.slow
    wide = predict(cfg, speed, tcp, sigma=same(0.01)).seconds
    assert wide.fast == measured.seconds.fast < wide.slow


def test_other_sizes_and_batches_are_scaled_and_marked() -> None:
    only = hand_given("resnet50", image_size=224, batch=64, step_s=0.2, group_bytes=1e7)
    calibration = Calibration([only], "")
    small = both(lambda end: calibration.profile(112, 128, 1, end))
    assert small.slow.guessed
    for end, law in (("fast", 1 - BY_PIXELS), ("slow", 1 + BY_PIXELS)):
        found, fixed = small.at(end), FIXED.at(end)
        assert found.step_s == pytest.approx(0.2 * (fixed + (1 - fixed) * law / 4 * 2))
        assert found.backward_s == pytest.approx(found.step_s * 2 / 3)
        assert found.groups[-1].release_s == pytest.approx(found.backward_s)
        assert [g.size_bytes for g in found.groups] == [g.size_bytes for g in only.groups]
        same_as = calibration.profile(224, 64, 1, end)
        assert replace(same_as, fixed=0.0) == only
        twice = calibration.profile(224, 64, 2, end)
        assert (twice.accumulate, twice.step_s) == (2, pytest.approx(0.4))
    near = Calibration([only, replace(only, batch=256, step_s=0.7)], "")
    fewer = both(lambda end: near.profile(224, 200, 1, end).step_s)
    assert fewer.fast == pytest.approx(0.7 * (0.05 + 0.95 * 200 / 256))
    assert fewer.slow == pytest.approx(0.7 * (0.2 + 0.8 * 200 / 256))
    more = both(lambda end: near.profile(224, 512, 1, end).step_s)
    assert more.fast == pytest.approx(0.7 * (0.2 + 0.8 * 2))
    assert more.slow == pytest.approx(0.7 * (0.05 + 0.95 * 2))


def test_a_fixed_share_is_the_same_seconds_at_any_scale() -> None:
    whole = replace(PROFILE, fixed=0.2)
    for work in (0.25, 3.0):
        once = whole.scaled(work)
        assert once.step_s == pytest.approx(0.2 * 0.3 + 0.8 * 0.3 * work)
        assert once.fixed * once.step_s == pytest.approx(0.2 * 0.3)
        assert once.scaled(1 / work).step_s == pytest.approx(whole.step_s)


def test_groups_are_bundled_as_the_reducer_does() -> None:
    """The same groups, except a norm that is on the other side of a border."""
    from hvdtrain.comm.ranks import Solo
    from hvdtrain.config import schema
    from hvdtrain.engine.reducer import Reducer
    from hvdtrain.models import build_model

    model = build_model(schema.Model(name="resnet50"), 1000)
    for limit in (1e6, 16 * 2**20, 1e9):
        given = hand_given("resnet50", image_size=224, batch=1, step_s=1.0, group_bytes=limit)
        sizes = [g.size_bytes for g in given.groups]
        flats = Reducer(model.parameters(), Solo(), group_bytes=limit).flats()
        assert sizes == pytest.approx([4.0 * flat.numel() for flat in flats], abs=4 * 2 * 2048)
        assert sum(sizes) == 4 * sum(p.numel() for p in model.parameters())


def test_layers_are_released_by_their_share_of_the_work() -> None:
    """VGG-16's classifier holds 90 % of the bytes and takes 1 % of the backward pass."""
    vgg = hand_given("vgg16", image_size=224, batch=1, step_s=1.0, group_bytes=0.0)
    assert sum(g.size_bytes for g in vgg.groups[:3]) > 0.89 * vgg.size_bytes
    assert vgg.groups[2].release_s < 0.01
    assert vgg.groups[-1].release_s == pytest.approx(vgg.backward_s) == pytest.approx(2 / 3)
    # The last convolution of the backward pass: 3 · 64 · 9 · 224² of 15.47 billion.
    last = vgg.groups[-1].release_s - vgg.groups[-2].release_s
    assert last == pytest.approx(2 / 3 * 1728 * 224**2 / 15.470264320e9)


@pytest.mark.parametrize("target", [0.7, 0.9])
def test_the_advice_is_the_minimum_that_suffices(target: float) -> None:
    cluster = Cluster(16, 8, replace(NETWORKS["tcp"], link_gbit=10.0))
    profile = hand_given(
        "resnet50", image_size=128, batch=64, step_s=0.03, group_bytes=1.6e7
    ).accumulated(2)
    setting = Setting(128, 64, 2)
    found = advise(setting, profile, cluster, wire=Wire(0.5), target=target, sigma=0.0)

    def reached(profile: Profile, gbit: float = 10.0) -> float:
        link = replace(cluster, network=replace(cluster.network, link_gbit=gbit))
        return update(profile, link, Wire(0.5), 0.0).efficiency

    assert found.efficiency == reached(profile) < target
    assert found.batch is not None
    assert reached(profile.with_batch(found.batch)) >= target
    assert reached(profile.with_batch(found.batch - 1)) < target
    assert found.accumulate is not None
    assert reached(profile.accumulated(found.accumulate)) >= target
    assert reached(profile.accumulated(found.accumulate - 1)) < target
    if found.link_gbit is not None:
        assert reached(profile, found.link_gbit) >= target
        assert reached(profile, found.link_gbit - 0.001) < target
    assert (found.link_gbit is None) == (reached(profile, 1e4) < target)


def test_nothing_helps_if_stragglers_cost_more() -> None:
    cluster = Cluster(16, 8, NET)
    found = advise(Setting(128, 32, 1), PROFILE, cluster, wire=Wire(), target=0.99, sigma=0.03)
    assert (found.batch, found.accumulate, found.link_gbit) == (None, None, None)
    enough = advise(Setting(128, 32, 1), PROFILE, cluster, wire=Wire(), target=0.01, sigma=0.03)
    assert (enough.batch, enough.accumulate) == (32, 1)
    assert enough.link_gbit is not None


def test_the_advice_of_both_ends() -> None:
    speed = Calibration([PROFILE, replace(PROFILE, image_size=224, batch=16)], "")
    cluster = Cluster(8, 1, replace(NETWORKS["tcp"], link_gbit=10.0))
    points = [predict(config(), speed.profile, cluster)]
    first, _second = advise_all(config(), speed.profile, points, target=0.8)
    assert isinstance(first, Ends)
    assert first.fast.batch is not None
    assert first.slow.batch is not None
    assert first.fast.batch < first.slow.batch
    assert first.fast.efficiency > first.slow.efficiency


ENTRY = {
    "image_size": 128,
    "batch": 64,
    "trained": 0,
    "images_per_second": 640.0,
    "backward_s": 0.03,
}
ABOUT = {"model": "resnet50", "precision": "bf16", "device": "NVIDIA H100"}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_calibration_with_and_without_gradients(tmp_path: Path) -> None:
    run = write(tmp_path / "run.json", {**ABOUT, "entries": [ENTRY]})
    found = read_calibration(run, "resnet50", group_bytes=1e7, accumulate=2)
    (profile,) = found.profiles
    assert found.about == "resnet50, bf16, NVIDIA H100"
    assert (profile.batch, profile.accumulate) == (32, 2)
    assert (profile.step_s, profile.backward_s) == pytest.approx((0.1, 0.03))
    assert profile.size_bytes == 4 * 25_557_032
    whole = {**ENTRY, "accumulate": 4, "release_s": [0.01, 0.025]}
    file = write(tmp_path / "whole.json", {**ABOUT, "groups": [5, 7], "entries": [whole]})
    (profile,) = read_calibration(file, "resnet50", group_bytes=1e7).profiles
    assert profile.groups == (Group(5, 0.01), Group(7, 0.025))
    assert (profile.batch, profile.accumulate) == (16, 4)
    # A mean of backward passes above the median of steps: no longer than a micro-batch.
    late = {**whole, "backward_s": 0.06, "release_s": [0.01, 0.06]}
    file = write(tmp_path / "late.json", {**ABOUT, "groups": [5, 7], "entries": [late]})
    (profile,) = read_calibration(file, "resnet50", group_bytes=1e7).profiles
    assert profile.backward_s == 0.025
    assert profile.groups == (Group(5, 0.01), Group(7, 0.025))


@pytest.mark.parametrize(
    "wrong",
    [
        {"entries": []},
        {"entries": [{**ENTRY, "images_per_second": 0.0}]},
        {"entries": [{**ENTRY, "batch": 63}]},
        {"entries": [{**ENTRY, "backward_s": -0.2}]},
        {"groups": [1, 2]},
        {"groups": [1, 2], "entries": [{**ENTRY, "release_s": [0.1]}]},
        {"groups": [1, 2], "entries": [{**ENTRY, "release_s": [0.03, 0.01]}]},
        {"precision": ...},
    ],
)
def test_a_wrong_calibration_is_one_line(wrong: dict[str, object], tmp_path: Path) -> None:
    content: dict[str, object] = {**ABOUT, "entries": [ENTRY], **wrong}
    content = {key: value for key, value in content.items() if value is not ...}
    file = write(tmp_path / "c.json", content)
    with pytest.raises(ResourceError, match=r"--calibration .*expected the calibration.json") as e:
        read_calibration(file, "resnet50", group_bytes=1e7, accumulate=2)
    assert "\n" not in str(e.value)


def test_another_models_calibration_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "c.json", {**ABOUT, "entries": [ENTRY]})
    with pytest.raises(ConfigError, match="made for resnet50, the config has model"):
        read_calibration(file, "resnet18", group_bytes=1e7)
    with pytest.raises(ResourceError, match="cannot be read: No such file"):
        read_calibration(tmp_path / "none.json", "resnet50", group_bytes=1e7)
