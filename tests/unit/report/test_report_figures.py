"""Figures of made-up runs: time to a target, cost over a restart, speed by phase."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.report.events import Restarts, restarts
from hvdtrain.report.figures import (
    Prices,
    node_hours,
    run_figures,
    target_result,
)
from hvdtrain.report.phases import phase_speeds
from hvdtrain.report.run import RunRecord, label_by_path, read_run, time_before
from hvdtrain.report.targets import Target, parse_target
from tests.report_runs import Log, restarted

PRICES = Prices(on_demand=24.48, spot=7.3)


def target(run: RunRecord, text: str, prices: Prices = PRICES) -> dict:
    return target_result(run, parse_target(text), prices).as_dict()


def test_time_and_cost_to_a_target_over_a_restart(tmp_path: Path) -> None:
    restarted(tmp_path)
    found = target(read_run(tmp_path), "top1=0.75")
    assert found["reached"]
    assert (found["epoch"], found["samples"], found["train_seconds"]) == (2.0, 400.0, 40.0)
    assert found["wall_seconds"] == 2022 - 990
    node_seconds = 2 * (1032 - 990) + 4 * (2022 - 1980)
    assert found["node_hours"] == pytest.approx(node_seconds / 3600)
    assert found["cost"] == pytest.approx(node_seconds / 3600 * 24.48)
    assert found["spot_cost"] == pytest.approx(node_seconds / 3600 * 7.3)


def test_the_first_evaluation_that_reaches_a_target_counts(tmp_path: Path) -> None:
    restarted(tmp_path)
    found = target(read_run(tmp_path), "top1=0.5")
    assert (found["epoch"], found["train_seconds"], found["wall_seconds"]) == (1.0, 20.0, 31.0)
    assert found["node_hours"] == pytest.approx(2 * 31 / 3600)


def test_a_loss_is_reached_from_above(tmp_path: Path) -> None:
    restarted(tmp_path)
    assert target(read_run(tmp_path), "loss=0.6")["epoch"] == 1.0
    assert target(read_run(tmp_path), "loss=0.3")["epoch"] == 2.0
    missed = target(read_run(tmp_path), "loss=0.1")
    assert not missed["reached"]
    assert missed["best"] == pytest.approx(0.2)


def test_a_target_that_is_not_reached_has_the_best_result(tmp_path: Path) -> None:
    log = restarted(tmp_path)
    log.eval(2100, 60, 0.7)
    missed = target(read_run(tmp_path), "top1=0.93")
    assert missed == {"metric": "top1", "target": 0.93, "reached": False, "best": 0.8}


def test_the_whole_of_a_restarted_run(tmp_path: Path) -> None:
    restarted(tmp_path)
    run = read_run(tmp_path)
    found = run_figures(run, [], PRICES).as_dict()
    assert [(s.began, s.ended, s.world_size) for s in run.attempts] == [
        (990.0, 1032, 4),
        (1980.0, 2024, 8),
    ]
    assert (found["train_seconds"], found["redone_seconds"]) == (40.0, 10.0)
    assert (found["wall_seconds"], found["paused_seconds"]) == (2024 - 990, 1980 - 1032)
    assert found["billed_seconds"] == 42 + 44
    assert (found["last_train_seconds"], found["last_wall_seconds"]) == (20.0, 44)
    assert found["node_hours"] == pytest.approx((2 * 42 + 4 * 44) / 3600)
    assert found["cost"] == pytest.approx((2 * 42 + 4 * 44) / 3600 * 24.48)
    assert (found["samples"], found["images_per_second"]) == (400.0, 10.0)
    assert (found["finished"], found["attempts"], found["nodes_assumed"]) == (True, 2, False)
    assert len(run.checkpoints) == 2


def test_the_users_number_of_nodes_replaces_that_of_every_attempt(tmp_path: Path) -> None:
    restarted(tmp_path)
    run = read_run(tmp_path)
    assert node_hours(run, nodes=16) == pytest.approx(16 * (42 + 44) / 3600)
    assert run_figures(run, [], Prices(nodes=16)).nodes == 16


def test_an_old_run_without_starts_is_split_where_its_steps_go_back(tmp_path: Path) -> None:
    restarted(tmp_path, starts=False)
    run = read_run(tmp_path)
    assert [(s.began, s.ended) for s in run.attempts] == [(1000.0, 1032), (1980.0, 2024)]
    found = run_figures(run, [Target("top1", 0.75)], PRICES).as_dict()
    assert found["targets"][0]["train_seconds"] == 40.0
    assert found["targets"][0]["wall_seconds"] == 2022 - 1000
    assert (found["redone_seconds"], found["nodes"], found["nodes_assumed"]) == (10.0, 1, True)
    assert found["node_hours"] == pytest.approx((32 + 44) / 3600)


def test_notes_before_a_resume_do_not_lengthen_the_attempt_before(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.train(1010, 10)
    log.write(1900, "note", text="warning: e2: damaged")
    log.write(1901, "note", text="resumed from e1: epoch 0, image 100")
    log.train(2010, 20)
    run = read_run(tmp_path)
    assert [(s.began, s.ended) for s in run.attempts] == [(1000.0, 1010), (2000.0, 2010)]
    assert run.train[-1].train_s == 20.0
    assert [note["time"] for note in run.notes] == [1900, 1901]


def test_a_start_without_training_is_an_attempt(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(100, "start", world_size=1, nodes=1, setup_seconds=40.0)
    log.write(500, "start", world_size=1, nodes=1, setup_seconds=40.0)
    log.train(520, 10)
    run = read_run(tmp_path)
    assert [s.seconds for s in run.attempts] == [40.0, 60.0]
    assert not run.finished


def test_restarts_are_counted_by_cause(tmp_path: Path) -> None:
    log = Log(tmp_path)
    assert restarts(log.root / "events.jsonl") == Restarts(by_signal=0, by_crash=0)
    for number, ended in enumerate(("crash", "stop", "crash", "crash"), 1):
        time = 1000.0 * number
        if number > 1:
            log.write(time, "note", text="resumed from c")
        log.write(time + 1, "start", world_size=2)
        log.train(time + 2, 10 * number)
        if ended == "stop":
            log.write(time + 3, "stop", cause="signal", step=10)
    log.write(5000.0, "note", text="resumed from c")  # of the attempt that is about to start
    assert restarts(log.root / "events.jsonl") == Restarts(by_signal=1, by_crash=3)


def test_the_time_of_the_attempts_before(tmp_path: Path) -> None:
    log = restarted(tmp_path)
    assert time_before(log.root / "events.jsonl") == (2, 42 + 44)
    log.write(3000, "note", text="resumed from e2: epoch 2, image 0")  # of the one that begins
    assert time_before(log.root / "events.jsonl") == (2, 42 + 44)


def test_of_a_run_started_again_in_its_directory_only_the_second_start_counts(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path)
    log.train(1010, 10)
    log.train(1020, 20)
    log.eval(1021, 20, 0.9)
    log.train(1510, 10)
    run = read_run(tmp_path)
    assert (run.redone_s, len(run.train), run.evals) == (20.0, 1, [])


def test_speed_by_phase(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.train(1010, 10, image_size=16, seconds=5.0, efficiency=0.6, data_wait_ratio=0.3)
    log.train(1020, 20, image_size=16, seconds=15.0, efficiency=0.8, data_wait_ratio=0.1)
    log.train(1030, 30, efficiency=0.9, data_wait_ratio=0.0)
    log.write(1050, "note", text="resumed from e2: epoch 1, image 100")
    log.train(1060, 60, samples=300.0, seconds=30.0, efficiency=0.5, data_wait_ratio=0.4)
    small, large = phase_speeds(read_run(tmp_path))
    assert (small.image_size, small.images, small.seconds) == (16, 200.0, 20.0)
    assert small.images_per_second == 10.0
    assert (small.first_epoch, small.last_epoch) == (0.0, 1.0)
    assert small.efficiency == pytest.approx(0.8)
    assert small.ratios["data_wait"] == pytest.approx((0.3 * 5 + 0.1 * 15) / 20)
    assert (large.first_epoch, large.last_epoch, large.seconds) == (1.0, 3.0, 40.0)
    assert large.efficiency == pytest.approx((0.9 * 10 + 0.5 * 30) / 40)
    assert large.ratios["data_wait"] == pytest.approx(0.4 * 30 / 40)


def test_efficiency_of_intervals_is_weighted_by_their_time(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for time, step, seconds, efficiency in ((1010, 10, 30.0, 0.8), (1020, 20, 10.0, 0.4)):
        log.train(time, step, seconds=seconds, efficiency=efficiency, efficiency_so_far=0.7)
    [phase] = phase_speeds(read_run(tmp_path))
    assert phase.efficiency == pytest.approx((0.8 * 30 + 0.4 * 10) / 40)


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    log = restarted(tmp_path)
    for line in ('{"time": 3000, "kind": "tr', "[1, 2]", "\x00\x00", "[" * 5000):
        log.raw(line)
    log.raw('{"kind": "train", "step": 90}')
    log.raw('{"time": "noon", "kind": "train"}')
    run = read_run(tmp_path)
    assert run.damaged_lines == 6
    assert run.train[-1].train_s == 40.0
    assert run.wall_s == 2024 - 990


@pytest.mark.parametrize("jump_s", [-86400, 0])
def test_a_clock_that_is_set_back_between_attempts_shortens_nothing(
    jump_s: int, tmp_path: Path
) -> None:
    restarted(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    second = next(k for k, event in enumerate(events) if event["time"] == 1999)
    for event in events[second:]:
        event["time"] += jump_s
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    run = read_run(tmp_path)
    pause_s = 948 if jump_s == 0 else 0  # not known
    assert run.wall_s == 42 + pause_s + 44
    assert [point.wall_s for point in run.evals] == [31, 42 + pause_s + 42]
    assert node_hours(run) == pytest.approx((2 * 42 + 4 * 44) / 3600)
    assert target(run, "top1=0.75")["node_hours"] == pytest.approx((2 * 42 + 4 * 42) / 3600)


def test_missing_and_odd_values_are_accepted(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(10, "train")
    log.raw('{"time": 20, "kind": "train", "loss": NaN, "epoch": "x", "image_size": Infinity}')
    log.raw('{"time": 30, "kind": "eval", "top1": null, "step": true}')
    log.raw('{"time": 40, "kind": ["odd"]}')
    log.raw(f'{{"time": 1{"0" * 400}, "kind": "train"}}')  # too large for a float
    (tmp_path / "config.yaml").write_text("- a\n- list\n")
    (tmp_path / "environment.json").write_text("{")
    found = run_figures(read_run(tmp_path), [Target("top1", 0.5)], PRICES).as_dict()
    assert found["targets"][0] == {
        "metric": "top1",
        "target": 0.5,
        "reached": False,
        "best": None,
    }
    assert (found["train_seconds"], found["wall_seconds"]) == (0.0, 30.0)
    assert found["images_per_second"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.93", "expected METRIC=VALUE"),
        ("top3=0.9", "unknown metric 'top3'; known are top1, top5, loss"),
        ("top1=93", "expected a ratio above 0, at most 1, found '93'"),
        ("top1=", "found ''"),
        ("top5=nan", "found 'nan'"),
        ("loss=-1", "expected a number above 0, found '-1'"),
        ("loss=inf", "found 'inf'"),
    ],
)
def test_a_wrong_target_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)


def test_right_targets() -> None:
    assert parse_target("top1=0.93") == Target("top1", 0.93)
    assert parse_target(" loss = 2.5 ") == Target("loss", 2.5)


def test_error_if_it_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"not a run directory: it has no events\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(ResourceError, match="no event to report: it is empty"):
        read_run(tmp_path)
    (tmp_path / "events.jsonl").write_text("x\ny\n")
    with pytest.raises(ResourceError, match="all 2 lines of it are damaged"):
        read_run(tmp_path)


def test_directories_with_the_same_name_are_labelled_by_path(tmp_path: Path) -> None:
    runs = [read_run(restarted(tmp_path / name).root) for name in ("a/run", "b/run", "c")]
    label_by_path(runs)
    assert [run.label for run in runs] == [str(tmp_path / "a/run"), str(tmp_path / "b/run"), "c"]
