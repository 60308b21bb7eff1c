"""`train.val_views` in a run, its results, and where they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hvdtrain.analysis.compare.comparison import Asked, compare
from hvdtrain.cli.results import eval_text, summary_text
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError
from hvdtrain.report.figures import Prices, run_figures
from hvdtrain.report.page import render
from hvdtrain.report.run import read_run
from hvdtrain.report.text import lines
from hvdtrain.run.evaluation import evaluate_run
from hvdtrain.train import train
from tests.compared_runs import made
from tests.unit.run.data_runs import config


def test_results_say_of_which_views_they_are(work: Path) -> None:
    run = work / "run"
    text = yaml.safe_dump(config(work).model_dump())
    summary = train(parse_config(text, overrides=["train.val_views=six"]), Solo(), run_dir=run)
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    [evaluation] = (event for event in events if event["kind"] == "eval")
    assert (evaluation["views"], summary["views"]) == ("six", "six")
    assert "(top-5 1.0000), 6 views of each" in summary_text(summary)
    six, one = (evaluate_run(run, more, Solo()) for more in ([], ["train.val_views=one"]))
    assert (six["views"], six["loss"]) == ("six", pytest.approx(summary["loss"], rel=1e-6))
    assert (one["views"], one["loss"]) != ("six", pytest.approx(summary["loss"], rel=1e-6))
    assert "(6 images, 6 views of each, " in eval_text(six)
    assert "(6 images, " in eval_text(one)
    assert "views of each" not in eval_text(one)
    record = read_run(run)
    figures = run_figures(record, [], Prices())
    assert "%, 6 views of each  training" in lines([figures])
    assert "views of each validation image" in render([record], [figures], [], Prices())
    with pytest.raises(ConfigError, match=r"train\.val_views six → one"):
        train(config(work, 2), Solo(), resume=str(run))


def test_a_comparison_says_that_views_differ(tmp_path: Path) -> None:
    runs = [made(tmp_path / "a", 0, 0.5), made(tmp_path / "b", 0, 0.4)]
    assert not any("val_views" in note for note in compare(Asked(runs)).notes)
    runs += [made(tmp_path / "c", 0, 0.4, settings=("train.val_views=mirror",))]
    found = compare(Asked(runs))
    assert [group.name for group in found.groups] == [
        "train.val_views=one",
        "train.val_views=mirror",
    ]
    assert any(note.startswith("train.val_views differs: ") for note in found.notes)
