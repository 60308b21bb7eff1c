"""`hvdtrain compare` on real runs: without torch, its files, an error in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hvdtrain.cli.main import main
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.paths import RunPaths
from hvdtrain.run.recorded import recorded_images
from hvdtrain.train import train
from tests.compared_runs import made
from tests.unit.report.report_page import assert_fetches_nothing, assert_references_hold, read
from tests.unit.report.test_report_command import SCRIPT
from tests.unit.run.data_runs import COLOURS, config, write

BUSY = "hvdtrain: comparing the runs, "


def test_the_command(tmp_path: Path) -> None:
    """On real runs, without torch; the figures are those of the runs."""
    write(tmp_path / "train", list(COLOURS))
    write(tmp_path / "val", list(COLOURS), 2, 10)
    text = yaml.safe_dump(config(tmp_path).model_dump())
    roots, summaries = [tmp_path / name for name in ("a0", "a1")], []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hvdtrain.train.write_page", lambda run: None)
        for seed, root in enumerate(roots):
            cfg = parse_config(text, overrides=[f"seed={seed}", "train.compute_threads=1"])
            summaries.append(train(cfg, Solo(), run_dir=root))
    roots.append(made(tmp_path / "b", 0, 0.5, 0.4))
    output = tmp_path / "out"
    options = ["--output", str(output), "--json"]
    line = [sys.executable, "-c", SCRIPT, "compare", *map(str, roots), *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    page_text, page = read(output / "compare.html")
    assert_fetches_nothing(page_text, page)
    assert_references_hold(page)
    assert "not comparable: validation images: hash " in page.text
    rows = [*csv.DictReader((output / "runs.csv").read_text().splitlines())]
    assert [(row["run"], row["group"], row["seed"], row["state"]) for row in rows] == [
        *(("a0", "A", "0", "finished"), ("a1", "A", "1", "finished")),
        ("b", "B", "0", "finished"),
    ]
    for row, summary in zip(rows, summaries, strict=False):
        assert float(row["last_loss"]) == pytest.approx(summary["loss"])
        assert float(row["last_top1"]) == pytest.approx(summary["top1"])
        assert float(row["train_seconds"]) == pytest.approx(summary["train_seconds"], rel=1e-3)
        assert float(row["updates"]) == summary["steps"]
    content = json.loads((output / "compare.json").read_text())
    assert json.loads(done.stdout) == {"report": f"{output}/compare.html", **content}
    loss = content["groups"][0]["figures"]["last_loss"]
    assert loss["mean"] == pytest.approx(sum(s["loss"] for s in summaries) / 2)
    assert loss["count"] == 2
    assert {path.suffix for path in (output / "pictures").iterdir()} == {".png", ".svg"}
    assert (output / "pictures/validation-loss-epoch.png").is_file()
    before = recorded_images(RunPaths(roots[0]))
    assert before.images == {"train": 12, "val": 6}
    (roots[0] / "dataset.npz").unlink()
    assert recorded_images(RunPaths(roots[0])) == before  # its checkpoint has them as well


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a", "nowhere"], 6, "nowhere: not a run directory: it has no events.jsonl"),
        (["a", "empty"], 6, "empty/events.jsonl: no event to report: it is empty"),
        (["a"], 2, "a: one run: expected two or more to compare"),
        (["a", "b", "./a/"], 2, "a: the same run twice"),
        (["a", "link"], 2, "link: the same run twice, as a and link: name each run once"),
        (["a", "b", "--metric", "speed"], 2, "--metric speed: expected one of best_loss, "),
        (["a", "b", "--target", "93"], 2, "--target 93: expected METRIC=VALUE"),
        (["a", "b", "--group-by", "seed"], 2, "--group-by seed: runs of one group differ"),
        (["a", "b", "--output", "full"], 6, "--output full: has files; name another folder"),
        (["a", "b", "--output", "full/file"], 6, "--output full/file: not a folder"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    made(tmp_path / "a", 0, 0.5)
    made(tmp_path / "b", 1, 0.5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/events.jsonl").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hvdtrain", "compare", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    error = capsys.readouterr().err
    assert message in error
    lines = [line for line in error.splitlines() if not line.startswith(BUSY)]
    assert len(lines) == 1, error
