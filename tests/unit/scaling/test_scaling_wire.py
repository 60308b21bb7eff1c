"""The bytes that the predictor counts are those that the reducer sends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from hvdtrain.cli import main as cli
from hvdtrain.comm.ranks import Solo
from hvdtrain.config import schema
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.reducer import Reducer
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model
from hvdtrain.scaling.network import NETWORKS, Cluster
from hvdtrain.scaling.overlap import Group
from hvdtrain.scaling.predict import update
from hvdtrain.scaling.profile import Profile, hand_given, read_calibration
from hvdtrain.scaling.wire import Wire, wire_of

CONFIG = "phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]\n"


def config(text: str) -> schema.Config:
    return parse_config(CONFIG + text)


def test_what_each_setting_sends() -> None:
    assert wire_of(config("")) == Wire(1.0)
    assert wire_of(config("comm: {compression: fp16}")) == Wire(0.5)
    assert wire_of(config("comm: {compression: auto, tune: measure}")) == Wire(0.5)
    assert wire_of(config("comm: {compression: powersgd, powersgd_rank: 2}")) == Wire(rank=2)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_networks_in_the_table(model: str, rank: int) -> None:
    network = build_model(schema.Model(name=model), 1000)
    reducer = Reducer(network.parameters(), Solo(), compression="powersgd", rank=rank)
    options = {"image_size": 224, "batch": 1, "step_s": 1.0, "group_bytes": 16 * 2**20}
    groups = hand_given(model, **options).groups
    assert Wire(rank=rank).total(groups) == reducer.step_bytes
    assert Wire(0.5).total(groups) == 2 * sum(flat.numel() for flat in reducer.flats())


def test_a_network_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONFIG + "model: {name: resnet8_gn, num_classes: 10}\n"
    text += "comm: {compression: powersgd, powersgd_rank: 2, group_mb: 0.05}\n"
    (tmp_path / "c.yaml").write_text(text)
    file = tmp_path / "calibration.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "hvdtrain",
            "scaling",
            "calibrate",
            str(tmp_path / "c.yaml"),
            "--output",
            str(file),
        ],
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    state = init_state(parse_config(text), Solo(), torch.device("cpu"), 10)
    [profile] = read_calibration(file, "resnet8_gn", group_bytes=0.0).profiles
    wire = wire_of(parse_config(text))
    assert len(profile.groups) > 2
    assert wire.total(profile.groups) == state.reducer.step_bytes
    for group, mine in zip(profile.groups, state.reducer.groups, strict=True):
        assert sum(wire.sums(group)) == mine.exchange.step_bytes
    older = json.loads(file.read_text())
    del older["matrices"]
    file.write_text(json.dumps(older))
    [profile] = read_calibration(file, "resnet8_gn", group_bytes=0.0).profiles
    with pytest.raises(ConfigError, match=r"powersgd: the shapes of the gradients are not known"):
        wire.total(profile.groups)


def test_second_sums_follow_the_backward_pass_and_all_first_ones() -> None:
    """Latencies alone, of 0.1 s a sum: two first sums during the pass, then two more."""
    groups = (Group(4e6, 0.1, ((1000, 1000),)), Group(4e6, 0.3, ((1000, 1000),)))
    profile = Profile(224, 1, 1.0, 0.5, groups)
    network = NETWORKS["rdma"]
    cluster = Cluster(
        2, 1, type(network)(link_gbit=1e6, efficiency=1.0, latency_s=0.05, call_s=0.0)
    )
    first, second = Wire(rank=1).sums(groups[0])
    assert (first, second) == (4000, 4000)
    assert update(profile, cluster, Wire(), 0.0).exposed_s == pytest.approx(0.0, abs=1e-3)
    assert update(profile, cluster, Wire(rank=1), 0.0).exposed_s == pytest.approx(0.2, abs=1e-3)
