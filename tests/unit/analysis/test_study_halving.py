"""The grid of rates and batches: what halving chooses, what it trains, and what the report shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.analysis.study.asked import Asked, Member, members
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.grid_page import _row_of, grid_section, parallel_section
from hvdtrain.analysis.study.halving import at, require_extendable, rungs, share, survivors
from hvdtrain.analysis.study.member_results import Result
from hvdtrain.analysis.study.prediction import seconds_per_epoch
from hvdtrain.analysis.study.processes import Processes
from hvdtrain.analysis.study.table import groups_of
from hvdtrain.analysis.study.trainer import Trainer
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.report.curves import Curve
from hvdtrain.train import train
from tests.unit.analysis.test_study_asked import BASE, cfg
from tests.unit.analysis.test_study_results import made
from tests.unit.run.data_runs import COLOURS, config, write

RATES = (0.01, 0.02, 0.04, 0.08)


def grid(seeds: int = 1) -> list[Member]:
    return members(Asked("lr-batch", (32, 64), seeds=seeds, rates=RATES, halving=True), cfg())


def result(member: Member, *losses: float, **more: Any) -> Result:
    epochs = [float(epoch) for epoch in range(1, len(losses) + 1)]
    curve = Curve(epochs, epochs, epochs, list(losses))
    one = made(member.batch, member.seed, name=member.name, rate=member.rate, **more)
    return replace(one, curves={**one.curves, "validation loss": curve}, best_loss=min(losses))


def test_rungs_and_their_share() -> None:
    assert rungs(40) == [5, 10, 20, 40]
    assert rungs(3) == [1, 2, 3]
    assert rungs(1) == [1]
    assert share(8, 40) == pytest.approx(5 / 16)
    assert share(1, 40) == 1
    assert share(6, 40) == pytest.approx((6 * 5 + 3 * 5 + 2 * 10 + 1 * 20) / 240)


def test_the_better_half_of_each_batch_survives() -> None:
    """By what was known at that rung: a later, lower loss does not count."""
    found = grid()
    results = [
        result(m, 1 - m.rate, 0.01 if m.rate == 0.01 else 2.0)
        if m.batch == 32
        else result(m, m.rate)
        for m in found
    ]
    kept = survivors(found, results, 1)
    assert [(m.batch, m.rate) for m in kept] == [(32, 0.04), (32, 0.08), (64, 0.01), (64, 0.02)]


def test_a_rate_that_diverged_or_failed_for_one_seed_is_out() -> None:
    found = grid(seeds=2)
    results = [
        result(m, m.rate, diverged=m.batch == 32 and m.rate == 0.01 and m.seed == 1)
        for m in found
        if (m.batch, m.rate, m.seed) != (64, 0.02, 0)
    ]
    kept = {(m.batch, m.rate) for m in survivors(found, results, 1)}
    assert kept == {(32, 0.02), (32, 0.04), (64, 0.01), (64, 0.04)}


def test_schedules_that_depend_on_the_epochs_are_refused() -> None:
    require_extendable(cfg())
    with pytest.raises(ConfigError, match=r"^lr\.schedule: cosine depends on the number"):
        require_extendable(cfg("lr.schedule=cosine"))


def test_a_rung_is_complete_while_the_next_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvdtrain.train.write_page", lambda run: None)
    write(tmp_path / "train", list(COLOURS))
    write(tmp_path / "val", list(COLOURS), 2, 10)
    folder = Folder(tmp_path / "s")
    trainer, member = Trainer(folder, Processes(1), print), grid()[0]
    run = folder.run(member.name)
    assert not trainer.finished(at(member, 1))

    def one_thread(epochs: int) -> Config:
        own = config(tmp_path, epochs)
        return own.model_copy(update={"train": own.train.model_copy(update={"compute_threads": 1})})

    train(one_thread(1), Solo(), run_dir=run)
    assert [trainer.finished(at(member, epochs)) for epochs in (1, 2)] == [True, False]
    train(one_thread(3), Solo(), resume=str(run))
    (run / "summary.json").unlink()  # as while it is trained further
    assert [trainer.finished(at(member, epochs)) for epochs in (2, 3)] == [True, False]
    (run / "summary.json").write_text(json.dumps({"epochs": 1, "stopped_early": True}))
    assert trainer.finished(at(member, 9))
    assert at(member, 2).settings[-1] == "phases.0.epochs=2"


def test_the_heat_map_and_its_line() -> None:
    found = grid()
    results = [result(m, m.rate + m.batch / 1000, diverged=m.rate == 0.08) for m in found]
    section = grid_section(groups_of(results), 0.01, 3)
    [chart] = section.charts
    assert chart.heat is not None
    assert chart.heat.values[0] == pytest.approx([0.042, 0.074])
    assert chart.heat.values[3] == [None, None]
    assert chart.heat.line == [(0.0, 0.0), (1.0, 1.0)]
    assert section.table is not None
    assert section.table.rows[-1] == ["best rate", "0.01", "0.01"]
    assert _row_of(0.02**0.5 * 0.04**0.5, RATES) == pytest.approx(1.5)
    assert _row_of(0.32, RATES) is None


def test_measured_and_predicted_seconds_by_ranks(tmp_path: Path) -> None:
    """Without links to other hosts, and with no gradients to speak of, the prediction is the time of
    the steps of one worker, times what waiting for the slowest of two costs: 0.6 to 4.7 %."""
    speed = {"image_size": 32, "batch": 16, "accumulate": 1, "images_per_second": 160.0}
    entry = {**speed, "backward_s": 0.05}
    about = {"model": "vgg_sigmoid", "precision": "fp32", "device": "cpu"}
    (tmp_path / "calibration.json").write_text(json.dumps({**about, "entries": [entry]}))
    start = tmp_path / "checkpoints/e0000-s0000000000"
    start.mkdir(parents=True)
    (start / "model.safetensors").write_bytes(b"\0" * 1000)
    own = parse_config(BASE, overrides=["phases.0.batch_per_worker=16"])
    seconds = seconds_per_epoch(own, tmp_path, 2, 320)
    assert seconds.fast < seconds.slow
    assert seconds.pair() == pytest.approx((1.0, 1.0), rel=0.06)
    results = [
        made(32, 0, ranks=1, seconds_per_epoch=2.0),
        made(32, 0, ranks=2, seconds_per_epoch=1.25, name="two"),
    ]
    section = parallel_section(groups_of(results), {"two": seconds})
    assert section.table is not None
    assert [row[:5] for row in section.table.rows] == [
        ["32", "1", "2", "–", "1.00"],
        ["32", "2", "1.25", f"{seconds.fast:.3g}–{seconds.slow:.3g}", "1.60"],
    ]
    assert [line.label for line in section.charts[0].lines] == ["batch 32", "batch 32, predicted"]
