"""Studies of checkpoints in one process: their files, and what they refuse."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.cli.main import main
from hvdtrain.comm.ranks import Solo
from hvdtrain.run.evaluation import evaluate_run
from tests.study_runs import made_run

Typed = Callable[..., tuple[int, str, str]]
SMALL = ("--images", "8", "--batch", "4")


@pytest.fixture(scope="module")
def runs(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs: `a` with three checkpoints, `b` of another seed, and others."""
    root = tmp_path_factory.mktemp("runs")
    made_run(root / "a", small_root, checkpoints=3)
    made_run(root / "b", small_root, seed=1)
    made_run(root / "averaged", small_root, **{"train.ema_decay": 0.9})
    made_run(root / "vgg", small_root, model="vgg_small")
    made_run(root / "three", small_root, classes=("3", "5", "8"))
    made_run(root / "renamed", small_root, classes=("3", "9"))
    made_run(root / "wide", small_root, model="wrn16", **{"model.width": 1})
    made_run(root / "wider", small_root, model="wrn16", **{"model.width": 2})
    made_run(root / "no-images", small_root, **{"data.train": "null", "data.val": "null"})
    return root


@pytest.fixture
def typed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Run `hvdtrain study …` in an empty folder with the runs; exit code, output and errors."""
    for run in runs.iterdir():
        (tmp_path / run.name).symlink_to(run)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hvdtrain", "study", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        done = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, done.out, done.err

    return run


def results(folder: str, name: str) -> dict[str, Any]:
    """The numbers, after a look at the other files."""
    files = {path.name for path in Path(folder).iterdir()}
    assert files == {f"{name}.{ending}" for ending in ("json", "csv", "png", "svg")}
    assert Path(folder, f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path(folder, f"{name}.svg").read_text()
    found: dict[str, Any] = json.loads(Path(folder, f"{name}.json").read_text())
    return found


def rows(folder: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, f"{name}.csv").read_text().splitlines()))


def test_a_landscape_has_the_evaluated_loss_in_its_middle(typed: Typed, runs: Path) -> None:
    code, out, err = typed(
        "landscape", "a", "averaged", "--dims", "1", "--points", "3", "--split", "val"
    )
    assert code == 0, err
    assert "a e0003-s0000000000, 14 images" in out
    assert "loss from " in out
    found = results("study-landscape", "landscape")
    for one, name in zip(found["checkpoints"], ("a", "averaged"), strict=True):
        expected = evaluate_run(runs / name, [], Solo())
        assert one["images"] == expected["images"] == 14
        assert one["axes"] == [[-1, 0, 1]]
        assert one["loss"][1] == pytest.approx(expected["loss"], rel=1e-5)
        assert one["top1"][1] == pytest.approx(expected["top1"])
        assert one["averaged_weights"] == (name == "averaged")
        assert one["loss"][0] != one["loss"][1]
    table = rows("study-landscape", "landscape")
    assert [row["alpha"] for row in table] == ["-1.0", "0.0", "1.0"] * 2
    assert float(table[1]["loss"]) == found["checkpoints"][0]["loss"][1]


def test_a_plane_and_a_trajectory(typed: Typed) -> None:
    code, out, err = typed("landscape", "a", "--points", "3", *SMALL, "--trajectory")
    assert code == 0, err
    assert "of the squared distances" in out
    [one] = results("study-landscape", "landscape")["checkpoints"]
    assert one["path_epochs"] == [1, 2, 3]
    assert one["path"][-1] == [0, 0]
    assert sum(one["variance"]) == pytest.approx(1)
    for axis, places in zip(one["axes"], zip(*one["path"], strict=True), strict=True):
        assert axis[0] < min(places) < max(places) < axis[-1]
    options = ("--range", "-0.5,1", "--batch-norm", "recomputed", "--overwrite", "--json")
    code, out, err = typed("landscape", "a", "--points", "2", *SMALL, *options)
    assert code == 0, err
    [plane] = json.loads(out)["checkpoints"]
    assert plane["axes"] == [[-0.5, 1], [-0.5, 1]]
    assert plane["batch_norm_recomputed"]
    assert len({loss for row in plane["loss"] for loss in row}) == 4


def test_a_line_between_two_checkpoints_ends_at_both(typed: Typed) -> None:
    pair = ("interpolate", "a", "b", "--points", "4", *SMALL)
    assert typed(*pair, "--output", "there")[0] == 0
    assert typed("interpolate", "b", "a", *pair[3:], "--output", "back", "--split", "train")[0] == 0
    there, back = (results(name, "interpolate")["checkpoints"][0] for name in ("there", "back"))
    assert there["axes"] == [[-1, 0, 1, 2]]
    assert there["loss"] == pytest.approx(back["loss"][::-1], rel=1e-5)
    assert there["to"]["name"].startswith("b ")
    assert there["distance"] > 0
    assert there["batch_norm_recomputed"]


def test_sharpness_and_hessian(typed: Typed) -> None:
    code, out, err = typed("sharpness", "a", "b", "--subspace", "3", "--iterations", "1", *SMALL)
    assert code == 0, err
    assert out.count("sharpness ") == 8
    for one in results("study-sharpness", "sharpness")["checkpoints"]:
        values = {(row["subspace"], row["epsilon"]): row["value"] for row in one["sharpness"]}
        assert values[None, 1e-3] > values[None, 5e-4] > 0
        assert values[3, 1e-3] > values[3, 5e-4] > 0
    options = ("--top", "2", "--most", "6", "--probes", "2", "--steps", "3", "--dtype", "fp64")
    code, out, err = typed("hessian", "a", *SMALL, *options)
    assert code == 0, err
    assert "largest eigenvalues" in out
    [one] = results("study-hessian", "hessian")["checkpoints"]
    assert one["largest"] == sorted(one["largest"], reverse=True)
    assert one["trace_error"] > 0
    assert len(one["density"]) == len(rows("study-hessian", "hessian"))


@pytest.mark.parametrize("study", ["sharpness", "hessian", "landscape", "interpolate"])
def test_a_dry_run_only_says_how_long_it_takes(typed: Typed, study: str) -> None:
    paths = ("a", "b") if study == "interpolate" else ("a",)
    code, out, err = typed(study, *paths, "--dry-run", *SMALL)
    assert code == 0, err
    assert out.startswith("about ")
    assert out.endswith(" on 1 rank, by one batch of images\n")
    assert not Path(f"study-{study}").exists()


REFUSALS = [
    (
        ("sharpness", "nothing"),
        4,
        "nothing: neither a run directory with checkpoints nor a checkpoint",
    ),
    (("sharpness", "a", "--epsilon", "0"), 2, "--epsilon 0: expected numbers above 0"),
    (("sharpness", "a", "--epsilon", "x"), 2, "--epsilon x: expected numbers separated by commas"),
    (("sharpness", "seed=1"), 2, "seed=1: no checkpoint before it"),
    (("hessian", "a", "--tolerance", "0"), 2, "--tolerance 0: expected a number above 0"),
    (("hessian", "no-images"), 3, "its run has no data.train: name images with data.train=DIR"),
    (("hessian", "no-images", "--split", "val"), 3, "its run has no data.val"),
    (("landscape", "a", "--output", "used"), 6, "--output used: has files; name another folder"),
    (("landscape", "a", "--output", "file"), 6, "--output file: not a folder; name another"),
    (("landscape", "a", "--range", "1"), 2, "--range 1: expected 2 numbers"),
    (("landscape", "a", "--range", "1,1"), 2, "--range 1,1: expected FROM,TO with FROM below TO"),
    (("landscape", "a", "--trajectory", "--dims", "1"), 2, "a trajectory is drawn in a plane"),
    (("landscape", "b", "--trajectory"), 4, "a trajectory of 1 checkpoints spans no plane"),
    (("landscape", "vgg", "a", "b", "--trajectory"), 4, "its model is vgg_small, that of b"),
    (("interpolate", "a"), 2, "interpolate: expected two checkpoints, found 1"),
    (("interpolate", "a", "vgg"), 4, "its model is vgg_small, that of a"),
    (("interpolate", "a", "three"), 4, "its number of classes is 3, that of a"),
    (("interpolate", "a", "renamed"), 4, "its classes is ['3', '9'], that of a"),
    (("interpolate", "wide", "wider"), 4, "made by another model: "),
    (("interpolate", "a", "b", "model.name=vgg_small"), 4, "its model is resnet8_cifar"),
    (("hessian", "a", "train.ema_decay=0.9"), 4, "has no ema.safetensors"),
]


@pytest.mark.parametrize(("words", "exit_code", "text"), REFUSALS)
def test_what_cannot_be_studied_is_refused_in_one_line(
    typed: Typed, words: tuple[str, ...], exit_code: int, text: str
) -> None:
    Path("used").mkdir()
    Path("used/file").touch()
    Path("file").touch()
    code, out, err = typed(*words, *SMALL)
    errors = [line for line in err.splitlines() if line.startswith("hvdtrain: error: ")]
    assert (code, out) == (exit_code, ""), err
    assert len(errors) == 1
    assert text in errors[0]
