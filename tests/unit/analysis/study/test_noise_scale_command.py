"""`hvdtrain study noise-scale` from the command line to its files."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.noise import words
from hvdtrain.analysis.study.noise.answers import Question, study_noise_scale
from hvdtrain.analysis.study.noise.page import sections_of
from hvdtrain.analysis.study.results import Request
from hvdtrain.cli.main import main
from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import ConfigError
from tests.noise_runs import recorded_run
from tests.study_runs import made_run

Typed = Callable[..., tuple[int, str, str]]
SCALES = [100.0 * 1.1**i for i in range(40)]
SPEED = {
    "model": "resnet50",
    "precision": "bfloat16",
    "device": "a GPU",
    "entries": [{"image_size": 32, "batch": 32, "images_per_second": 640, "backward_s": 0.03}],
}


@pytest.fixture(scope="module")
def runs(digits_root: Path, small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` has recorded a noise scale on 2 ranks; `one` on one rank has none; `tilted`: a large gradient."""
    root = tmp_path_factory.mktemp("runs")
    for name, count in (("3", 2), ("8", 20)):
        folder = root.with_name("uneven") / "train" / name
        folder.mkdir(parents=True)
        for image in sorted((digits_root / "train" / name).iterdir())[:count]:
            (folder / image.name).write_bytes(image.read_bytes())
    made_run(root / "tilted", root.with_name("uneven"), checkpoints=2, bias=3.0)
    recorded_run(root / "tilted", [None] * 3, batches=[4] * 3, sizes=[16] * 3, ranks=1)
    settings: dict[str, Any] = {"data.train_size": 50000}
    made_run(root / "one", small_root, checkpoints=2)
    recorded_run(root / "one", [None] * 3, ranks=1)
    made_run(root / "run", small_root, size=32, **settings)
    recorded_run(root / "run", SCALES)
    text = (root / "run/config.yaml").read_text()
    text = text.replace("resnet8_cifar", "resnet50").replace(
        "batch_per_worker: 4", "batch_per_worker: 32"
    )
    (root / "run/config.yaml").write_text(text)
    (root / "run/calibration.json").write_text(json.dumps(SPEED))
    return root


@pytest.fixture
def typed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Run `hvdtrain study noise-scale …` in an empty folder with the runs; exit code, output and errors."""
    for run in runs.iterdir():
        (tmp_path / run.name).symlink_to(run)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hvdtrain", "study", "noise-scale", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        done = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, done.out, done.err

    return run


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_with_nodes_and_price(typed: Typed) -> None:
    code, out, err = typed(
        "run", "--link", "10", "--max-nodes", "8", "--price", "3", "--output", "out"
    )
    assert code == 0, err
    assert "noise scale 1,106 ± " in out
    assert "quarter 4" in out
    assert "64 (now)" in out
    assert "on 1 node) for " in out
    assert "cheapest" in out
    assert "ignores the Hessian" in out
    folder = Path("out")
    found = json.loads((folder / "noise-scale.json").read_text())
    [one] = found["found"]
    assert one["recorded"][0]["mean"] == pytest.approx(sum(SCALES) / 40)
    [link] = one["links"]
    assert link["verdict"] in out
    assert (link["link_gbit"], link["now"]["batch"]) == (10, 64)
    assert [offer["nodes"] for offer in link["fastest"]] == [1, 2, 4, 8]
    assert link["now"]["seconds_low"] < link["now"]["seconds_high"]
    assert link["now"]["seconds_low"] == pytest.approx(400 * 32 / 640, rel=0.3)
    advised = link["advised"]
    ratios = [link["now"][f"seconds_{end}"] / advised[f"seconds_{end}"] for end in ("low", "high")]
    found_ratios = [advised["faster_low"], advised["faster_high"]]
    assert found_ratios == pytest.approx(sorted(ratios))
    assert link["late_ranks_allow_low"] < link["late_ranks_allow_high"] < 1
    assert "16 ranks reach at most 91.4–98.8% efficiency" in out
    assert re.search(r"^now +2 .* [\d.]+ s–[\d.]+ s ", out, re.MULTILINE)
    assert len(rows(folder / "noise-scale.csv")) == 40
    assert {row["nodes"] for row in rows(folder / "nodes.csv")} == {"1", "2", "4", "8"}
    assert any(row["own"] == "True" for row in rows(folder / "trade-off.csv"))
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == len(list((folder / "pictures").glob("*.png"))) == 5
    assert "What this assumes" in page
    again = typed("run", "--output", "out", "--json")
    assert again[0] == 6
    assert "--overwrite" in again[2]


def test_a_checkpoint_is_measured_on_the_images_of_its_run(typed: Typed) -> None:
    paths = ("one/checkpoints/e0001-s0000000000", "one/checkpoints/e0002-s0000000000")
    code, out, err = typed(*paths, "--batch", "2")
    assert code == 0, err
    assert out.count("22 images in 16 batches, loss ") == 2
    text = Path("study-noise-scale/noise-scale.json").read_text()
    assert "batch norm has the statistics of 1.38 images here, and of 4 in training" in err
    first, second = json.loads(text)["found"]
    for one in (first, second):
        measured = one["measured"]
        assert (measured["images"], measured["batches"]) == (22, 16)
        assert measured["trace"] > 0
        assert (measured["high"] is not None) == measured["resolved"]
        assert (one["trade_off"] is None) != measured["resolved"]
    assert first["measured"]["trace"] != second["measured"]["trace"]
    assert len(rows(Path("study-noise-scale/noise-scale.csv"))) == 2


def test_a_measured_checkpoint_with_nodes(runs: Path) -> None:
    """With the logit of a rare class too high, the images of the other one agree: the noise scale is small. The
    time of a step is that of the run, which was on one rank."""
    paths = [runs / f"tilted/checkpoints/e000{epoch}-s0000000000" for epoch in (1, 2)]
    request = Request(paths, [], Choice(images=22, batch=1))
    results = study_noise_scale(request, Solo(), Question("10", max_nodes=2))
    for found in results.found:
        measured, trade_off = found.measured, found.trade_off
        assert trade_off is not None
        assert measured["low"] < measured["scale"] < measured["high"]
        assert trade_off.critical == pytest.approx(measured["scale"])
        assert trade_off.updates == 9 * 6  # epochs of 22 images in batches of 4
        assert "images (95 %: " in "".join(words.sentences(found))
        assert found.speed == "resnet8_cifar, median of the run's own steps on one rank"
        [answer] = found.answers
        assert answer.bounds is not None
        for faster in answer.faster(answer.advised).pair():
            assert answer.bounds[0] <= faster <= answer.bounds[1]
        assert f"({answer.bounds[0]:.2g} to " in words.verdict(answer)
    *_, grown, assumed = sections_of(results, None)
    [chart] = grown.charts
    assert [line.xs for line in chart.lines] == [[1.0, 2.0]]
    assert "Gradients are those of training" in assumed.text


def test_a_dry_run_only_says_how_long_measuring_takes(typed: Typed) -> None:
    code, out, err = typed("one/checkpoints/e0001-s0000000000", "--batch", "2", "--dry-run")
    assert code == 0, err
    assert out.startswith("about ")
    assert out.endswith(" on 1 rank, by one batch of images\n")
    code, out, err = typed("run", "--dry-run", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["study"], found["dry_run_seconds"]) == ("noise-scale", 0)
    assert found["found"][0]["trade_off"]["batch"] == 64
    assert not Path("study-noise-scale").exists()


def test_warnings_of_a_run(runs: Path, tmp_path: Path) -> None:
    """Noise hid the signal in a quarter of its updates, and its steps took a hundred times as long as its
    calibration says."""
    run = tmp_path / "run"
    shutil.copytree(runs / "run", run)
    recorded_run(run, [None, None, *SCALES[:6]], step_s=5.0)
    request = Request([run], [], Choice())
    results = study_noise_scale(request, Solo(), Question("10", max_nodes=2))
    hidden, far = results.warnings
    assert "in 25% of the updates noise hid the signal" in hidden
    assert "its steps took 400 s, and the model says" in far
    [found] = results.found
    assert found.trade_off is not None
    assert found.trade_off.updates_with(64) == pytest.approx(80)
    [answer] = found.answers
    assert answer.advised in answer.fastest
    (run / "calibration.json").write_text(json.dumps({**SPEED, "model": "resnet18"}))
    with pytest.raises(ConfigError, match="made for resnet18, the config has model"):
        study_noise_scale(request, Solo(), Question("10"))
    (run / "calibration.json").unlink()
    with pytest.raises(ConfigError, match="steps of several ranks include their communication"):
        study_noise_scale(request, Solo(), Question("10"))


@pytest.mark.parametrize(
    ("typed_words", "line"),
    [
        (("one",), "hvdtrain study noise-scale one/checkpoints/e0002-s0000000000"),
        (("nowhere",), "neither a run directory"),
        (("run", "--max-nodes", "8"), "--max-nodes: only with --link GBIT"),
        (("run", "--link", "fast"), "--link fast: expected numbers"),
        (("one/checkpoints/e0001-s0000000000", "--images", "7"), "needs at least 16"),
    ],
)
def test_refusals(typed: Typed, typed_words: tuple[str, ...], line: str) -> None:
    code, _out, err = typed(*typed_words, "--output", "refused")
    assert code in (2, 3, 4, 5, 6)
    assert line in err
    assert err.strip().count("\n") == 0
    assert not Path("refused").exists()
