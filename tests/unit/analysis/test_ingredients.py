"""benchmarks/ingredients.py: what it would train, what it never trains again, and what its table may say."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.analysis.study.cost import plan_of
from tests.launch import REPOSITORY

OPTIONAL = ("Muon", "compiled")
"""Left out by versions that do not have them."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("ingredients")


def asked(root: Path, **values: Any) -> argparse.Namespace:
    """Arguments, with a folder of files that are never read as images."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "data" / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(4):
                (folder / f"{number}.jpg").touch()
    named = {"data": root / "data", "output": root / "out", "only": None, "seeds": 2, "epochs": 12}
    sizes = {"images": None, "val_images": None, "model": "resnet8_cifar", "ranks": 2}
    rest = {"minutes": 60.0, "dry_run": False}
    return argparse.Namespace(**{**named, **sizes, **rest, **values})


def test_every_ingredient_can_be_planned(benchmark: Any, tmp_path: Path) -> None:
    for epochs in (3, 12, 15, 20):
        args = asked(tmp_path, epochs=epochs)
        _text, cfg = benchmark.config_of(args)
        members, wanted = benchmark.members_of(args, cfg)
        assert set(wanted) >= set(benchmark.ingredients(epochs, 64)) - set(OPTIONAL)
        assert [member.seed for member in members] == [0] * len(wanted) + [1] * len(wanted)
        for member in members:
            plan = plan_of(cfg, member, 1280)
            assert len(plan.epochs) == epochs, member.name
            assert {epoch.global_batch_size for epoch in plan.epochs} == {128}


def test_what_has_ended_is_not_trained_again(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = asked(tmp_path, only=["mixup", "step"])
    _text, cfg = benchmark.config_of(args)
    members, _wanted = benchmark.members_of(args, cfg)
    top1 = {"base": 0.7, "mixup": 0.8, "step": 0.7}
    for member in members:
        root = args.output / "members" / member.name
        root.mkdir(parents=True)
        value = top1[member.name[:-3]] + 0.001 * member.seed
        end = {"top1": value, "loss": 1.0, "train_seconds": 9.0}
        (root / "summary.json").write_text(json.dumps(end))
    with pytest.raises(SystemExit) as ended:
        benchmark.run(args)
    assert ended.value.code == 0
    assert "not trained" not in capsys.readouterr().out
    found = json.loads((args.output / "ingredients.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["base", "mixup", "step"]
    assert [row["verdict"] for row in found["rows"]] == ["", "higher", "within the spread"]
    assert "| mixup | `train.mixup=0.2` | 80.05 ± 0.071 | +10.00" in (
        args.output / "ingredients.md"
    ).read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="it was begun with other settings: use another --output"):
        benchmark.run(asked(tmp_path, only=["mixup"], epochs=13))


@pytest.mark.parametrize(
    ("values", "diverged", "said"),
    [
        ([75.0, 75.2, 75.1], 0, "higher"),
        ([65.0, 65.2, 65.1], 0, "lower"),
        ([70.3, 70.9, 70.5], 0, "every seed higher"),  # but not by enough
        ([70.1, 70.3, 70.2], 0, "within the spread"),
        ([75.0], 0, "fewer than two seeds"),
        ([], 2, "2 diverged"),
    ],
)
def test_verdicts(benchmark: Any, values: list[float], diverged: int, said: str) -> None:
    rows = importlib.import_module("ingredients_table")
    base = rows.Row("base", "", [70.0, 70.2, 70.25], [], [], 0)
    other = rows.Row("other", "x=1", values, [], [], diverged)
    third = rows.Row("third", "y=1", [70.0, 70.1, 70.3], [], [], 0)
    assert [row.verdict for row in rows.tested([base, other, third])] == [
        "",
        said,
        "within the spread",
    ]
    assert rows.markdown([base, other]).count("\n") == 3


def test_a_list_has_as_many_images_of_each_class(benchmark: Any, tmp_path: Path) -> None:
    args = asked(tmp_path, images=6, val_images=4)
    found = benchmark.images_of(args)
    lines = found["train"].read_text().splitlines()
    assert lines[0] == "path,label"
    labels = [line.rpartition(",")[2] for line in lines[1:]]
    assert len(set(labels)) > 1
    assert {labels.count(label) for label in labels} == {6 // len(set(labels))}
    assert found["val"] == args.output / "val-4.csv"
