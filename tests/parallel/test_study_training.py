"""`hvdtrain study lr-batch` and `parallel` from the command line to their reports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from tests.launch import run
from tests.unit.analysis.test_study_killed import CONFIG


def study(work: Path, root: Path, *words: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Its table and `study.json`, after the command has ended well."""
    (work / "c.yaml").write_text(CONFIG.format(root=root, epochs=2))
    command = ["hvdtrain", "study", words[0], "c.yaml", "--batches", "4", *words[1:]]
    done = run([*command, "--output", "s"], cwd=work, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "s/report.html").is_file()
    table = csv.DictReader(io.StringIO((work / "s/study.csv").read_text()))
    return list(table), json.loads((work / "s/study.json").read_text())


def test_the_better_rate_is_trained_further(small_root: Path, tmp_path: Path) -> None:
    words = ("lr-batch", "--rates", "0.01,1e-6", "--jobs", "2")
    rows, _content = study(tmp_path, small_root, *words)
    epochs = {float(row["rate"]): float(row["epochs"]) for row in rows}
    best = min(rows, key=lambda row: float(row["best_loss"]))
    assert sorted(epochs.values()) == [1, 2]
    assert epochs[float(best["rate"])] == 2
    assert "best rate" in (tmp_path / "s/report.html").read_text()


def test_a_batch_on_one_and_two_ranks(small_root: Path, tmp_path: Path) -> None:
    words = ("parallel", "--ranks", "1,2", "comm.preflight=false", "phases.0.epochs=1")
    rows, content = study(tmp_path, small_root, *words)
    assert [(row["ranks"], row["updates"]) for row in rows] == [("1", "6.0"), ("2", "6.0")]
    assert content["asked"]["ranks"] == [1, 2]
    page = (tmp_path / "s/report.html").read_text()
    assert "predicted" in page
