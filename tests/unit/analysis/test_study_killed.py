"""A study that is killed goes on, and ends with what it would have ended with."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from hvdtrain.analysis.study.asked import Asked, Member
from hvdtrain.analysis.study.cost import costs, member_config
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.member_results import result_of
from hvdtrain.analysis.study.study import Study
from hvdtrain.analysis.study.surfaces import Surfaces
from hvdtrain.cli.main import app
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.train import train
from tests.launch import end_jobs, environment

KILLS = int(os.environ.get("HVDTRAIN_STUDY_KILLS", "1"))
"""More than one: at random moments of a longer study."""
EPOCHS = 2 if KILLS == 1 else 30
CONFIG = """
name: small
data: {{train: {root}/train, val: {root}/val, augment: none, decode_threads: 1}}
model: {{name: vgg_sigmoid}}
optimizer: {{momentum: 0.9}}
lr: {{base: 0.01, base_batch: 4, warmup: none, schedule: constant}}
phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: 4}}]
train: {{compute_threads: 1, log_every: 2}}
checkpoint: {{every_steps: 1, keep: 9}}
metrics: {{enabled: false}}
"""
OF_TIME = ("seconds_to_best", "seconds_per_epoch")


def asked_for(cfg: Config, root: Path, threads: int = 1) -> Study:
    return Study.of(root, Asked("batch-size", (4, 8), ("none",), 1, threads=threads), cfg)


@pytest.fixture
def work(small_root: Path, tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(CONFIG.format(root=small_root, epochs=EPOCHS))
    return tmp_path


WORDS = (
    *("study", "batch-size", "c.yaml", "--batches", "4,8", "--scaling", "none"),
    *("--seeds", "1", "--jobs", "2", "--output", "s"),
    *("--measure", "sharpness,interpolate", "--images", "8"),
)


def started(work: Path) -> subprocess.Popen[str]:
    with (work / "out").open("a") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "hvdtrain", *WORDS],
            cwd=work,
            env=environment(),
            stdout=out,
            stderr=out,
            text=True,
        )


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("e0*-s0000000000"))
    return safetensors.torch.load_file(newest / "model.safetensors")


def untimed(member: Member, run: Path) -> dict[str, object]:
    row = result_of(member, run, finished=True, diverged=False).row()
    return {key: value for key, value in row.items() if key not in OF_TIME}


def test_a_killed_study_goes_on_and_ends_alike(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvdtrain.train.write_page", lambda run: None)
    begun = work / "s/members/b4-none-s0/checkpoints/e0000-s0000000000"
    jobs = []
    try:
        for _ in range(KILLS):
            jobs.append(started(work))
            until = time.monotonic() + 120
            if KILLS > 1:
                time.sleep(random.uniform(0, 20))
            while KILLS == 1 and not begun.is_dir() and time.monotonic() < until:
                time.sleep(0.005)
            jobs[-1].kill()
            jobs[-1].wait()
    finally:
        end_jobs(jobs)
    monkeypatch.chdir(work)
    done = CliRunner().invoke(app, WORDS)
    assert done.exit_code == 0, (done.output, done.exception)
    study = asked_for(load_config(work / "c.yaml"), work / "s")
    rows = {
        row["name"]: row for row in csv.DictReader(io.StringIO((work / "s/study.csv").read_text()))
    }
    for member in study.members:
        train(member_config(study.cfg, member), Solo(), run_dir=work / member.name)
        run = study.folder.run(member.name)
        first, second = last_weights(run), last_weights(work / member.name)
        assert all(torch.equal(first[name], second[name]) for name in second)
        expected = untimed(member, work / member.name)
        assert untimed(member, run) == expected
        shown = {key: "" if value is None else str(value) for key, value in expected.items()}
        assert {key: rows[member.name][key] for key in expected} == shown
    content = json.loads((work / "s/study.json").read_text())
    assert content["gradients"].keys() == {"b4-none-s0", "b8-none-s0"}
    assert (work / "s/report.html").is_file()
    assert {float(row["sharpness 0.001"]) > 0 for row in rows.values()} == {True}
    surfaces = Surfaces(study.folder, ("sharpness", "interpolate"), 8, study.cfg.seed, 1)
    tasks = study.tasks(surfaces, study.trainer(1, print))
    assert (len(tasks), surfaces.left(tasks)) == (3, [])
    trainer = study.trainer(1, print)
    outcome = trainer.train(study.members)  # nothing is left to train
    assert (outcome.finished, outcome.failed, outcome.stopped) == ([], {}, False)
    assert [cost.finished for cost in study.costs(trainer)] == [True, True]


def test_members_on_other_images_are_named(
    work: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvdtrain.train.write_page", lambda run: None)
    study = asked_for(load_config(work / "c.yaml"), work / "s")
    shutil.copytree(small_root, work / "other")
    next((work / "other/train/3").iterdir()).unlink()
    names = [member.name for member in study.members]
    for member, data in zip(study.members, (small_root, work / "other"), strict=True):
        cfg = member_config(study.cfg, member)
        images = cfg.data.model_copy(update={"train": f"{data}/train"})
        first = [cfg.phases[0].model_copy(update={"epochs": 1})]
        own = cfg.model_copy(update={"data": images, "phases": first})
        train(own, Solo(), run_dir=study.folder.run(member.name))
    assert study._other_images(names[:1]) == ""
    text = study._other_images(names)
    assert text.startswith(f"{names[1]}: trained or evaluated on other images than {names[0]}")


def test_members_that_fail_or_diverge_leave_the_others(work: Path) -> None:
    """Diverged is a result, and is not tried again; a failure is one line, and is."""
    cfg = load_config(work / "c.yaml", ["lr.base=1e30", "metrics.enabled=false"])
    study = asked_for(cfg, work / "s")
    study.begin().release()
    first, second = study.members
    wrong = replace(second, settings=(*second.settings, "lr.base=-1"))
    lines: list[str] = []
    outcome = study.trainer(2, lines.append).train([first, wrong])
    assert list(outcome.diverged) == ["b4-none-s0"]
    assert list(outcome.failed) == ["b8-none-s0"]
    assert outcome.failed["b8-none-s0"].startswith("exit code 2: ")
    assert "lr.base" in outcome.failed["b8-none-s0"]
    assert all("\n" not in line for line in lines)
    again = study.trainer(2, lines.append)
    left = [m for m in study.members if m.name in study.folder.read()["diverged"]]
    assert again.train(left).diverged == {}
    [result] = study.results(again)
    assert (result.name, result.diverged) == ("b4-none-s0", True)


def test_the_cost_of_a_study_that_has_not_begun(work: Path) -> None:
    study = asked_for(load_config(work / "c.yaml"), work / "s")
    table = costs(study.cfg, study.members, study.images, study.trainer(1, print))
    assert [cost.updates for cost in table] == [EPOCHS * 6, EPOCHS * 3]  # 22 images
    assert all(cost.seconds and not cost.finished for cost in table)
    assert not Folder(work / "s").root.exists()
