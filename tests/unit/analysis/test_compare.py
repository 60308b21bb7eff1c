"""Runs side by side: groups, what differs, figures and tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from hvdtrain.analysis.compare.comparison import Asked, Comparison, compare
from hvdtrain.analysis.compare.text import as_text
from hvdtrain.errors import ConfigError
from hvdtrain.report.targets import Target
from tests.compared_runs import made
from tests.report_runs import restarted
from tests.unit.analysis.test_compare_significance import SLEEP

LR = ("lr.base=0.2",)


def compared(*paths: Path, **asked: Any) -> Comparison:
    return compare(Asked(paths, **asked))


def grouped(found: Comparison) -> dict[str, list[str]]:
    return {group.name: [run.label for run in group.runs] for group in found.groups}


def figure(found: Comparison, group: int, key: str) -> str:
    [one] = [each for each in found.figures if each.key == key]
    return found.groups[group].text(one)


def test_runs_that_differ_in_seed_and_machine_are_a_group(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "a0", 0, 0.5, 0.4),
        made(tmp_path / "b0", 0, 0.6, settings=LR),
        made(tmp_path / "a1", 1, 0.3, 0.5, settings=("data.prefetch=3", "data.val=/elsewhere")),
        made(tmp_path / "b1", 1, 0.7, settings=LR),
        made(tmp_path / "r", 0, 0.7, settings=LR, ranks=4),
    ]
    found = compared(*runs)
    assert grouped(found) == {
        "lr.base=0.1, ranks=2, global batch=10": ["a0", "a1"],
        "lr.base=0.2, ranks=2, global batch=10": ["b0", "b1"],
        "lr.base=0.2, ranks=4, global batch=20": ["r"],
    }
    differ = {each.key: (each.machine, each.cells) for each in found.differences}
    assert differ == {
        "lr.base": (False, ["0.1", "0.2", "0.2"]),
        "ranks": (False, ["2", "2", "4"]),
        "global batch": (False, ["10", "10", "20"]),
        "data.val": (True, ["/data/val, /elsewhere", "/data/val", "/data/val"]),
        "data.prefetch": (True, ["2, 3", "2", "2"]),
    }
    assert [*grouped(compared(*runs, group_by=["lr.base"]))] == ["lr.base=0.1", "lr.base=0.2"]
    assert (
        "within a group also differ: ranks, global batch"
        in compared(*runs, group_by=["lr.base"]).notes
    )
    with pytest.raises(ConfigError, match=r"--group-by lr\.bas: no run has it"):
        compared(*runs, group_by=["lr.bas"])


def test_the_batch_is_named_by_its_product(tmp_path: Path) -> None:
    per_worker, patience = "phases.0.batch_per_worker=10", "train.patience=3"
    found = compared(
        made(tmp_path / "a", 0, 0.5, ranks=2, settings=("train.accumulate=2",)),
        made(tmp_path / "b", 0, 0.5, ranks=2, settings=(per_worker, patience)),
    )
    assert [*grouped(found)] == [
        "phases.0.batch_per_worker=5, train.accumulate=2, train.patience=null",
        "phases.0.batch_per_worker=10, train.accumulate=1, train.patience=3",
    ]
    found = compared(tmp_path / "a", made(tmp_path / "c", 0, ranks=4, settings=(per_worker,)))
    assert [*grouped(found)] == ["ranks=2, global batch=20", "ranks=4, global batch=40"]


def test_figures(tmp_path: Path) -> None:
    found = compared(
        made(tmp_path / "a0", 0, 0.5, 0.4),
        made(tmp_path / "a1", 1, 0.3, 0.5),
        made(tmp_path / "b", 0, 0.6, settings=LR),
        targets=[Target("loss", 0.45), Target("top1", 0.65)],
    )
    assert figure(found, 0, "best_loss") == "0.35 ± 0.071"
    assert figure(found, 0, "last_loss") == "0.45 ± 0.071"
    assert figure(found, 0, "best_top1") == "0.65 ± 0.071"
    assert figure(found, 0, "last_top1") == "0.55 ± 0.071"
    assert figure(found, 0, "epochs_to_best") == "1.5 ± 0.71"
    assert figure(found, 0, "updates_to_best") == "30 ± 14"
    assert figure(found, 0, "seconds_to_best") == "30.0 s ± 14.1 s"
    assert figure(found, 0, "seconds_to_loss=0.45") == "30.0 s ± 14.1 s"
    assert figure(found, 0, "updates_to_top1=0.65") == "20 (1 of 2)"
    assert figure(found, 0, "images_per_second") == "10"
    assert figure(found, 0, "seconds_per_epoch") == "20.0 s"
    assert figure(found, 0, "scaling_efficiency") == "0.9"
    assert figure(found, 0, "wall_seconds") == "48.0 s"  # 5 of set-up, 2 × 21 and 1
    assert float(figure(found, 0, "machine_hours")) == pytest.approx(48 / 3600, rel=1e-3)
    assert figure(found, 1, "best_loss") == "0.6"
    assert figure(found, 1, "epochs_to_top1=0.65") == "–"


def test_what_a_run_lacks_is_missing_not_zero(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", 0), made(tmp_path / "b", 0, 0.5, settings=LR)
    found = compared(a, b)
    for key in ("best_loss", "epochs_to_best", "images_per_second", "train_seconds", "updates"):
        assert figure(found, 0, key) == "–"
    shown = [line.split() for line in as_text(found).splitlines()]
    assert ["lowest", "validation", "loss", "–", "0.5"] in shown
    assert {pair.reason for pair in found.pairs} == {"no value in A"}


def sleep(tmp_path: Path, *, first_seed: int, settings: tuple[str, ...] = LR) -> list[Path]:
    """Student's data as losses; the seeds of the second group begin at `first_seed`."""
    first = [made(tmp_path / f"a{i}", i, 5 + v) for i, v in enumerate(SLEEP[0])]
    second = [
        made(tmp_path / f"b{i}", first_seed + i, 5 + v, settings=settings)
        for i, v in enumerate(SLEEP[1])
    ]
    return [*first, *second]


def test_equal_seeds_are_compared_in_pairs(tmp_path: Path) -> None:
    runs = sleep(tmp_path, first_seed=0)
    found = compared(*runs, metrics=["best_loss"])
    [pair] = found.pairs
    assert pair.test is not None
    assert (pair.test.method, pair.counts, pair.verdict) == ("paired", (10, 10), "A is better")
    assert pair.p == pytest.approx(0.002833, abs=5e-7)
    other = compared(*[*runs[:10], *reversed(runs[10:])], metrics=["best_top1"]).pairs[0]
    assert other.verdict == "A is better"
    assert other.p == pytest.approx(pair.p)  # by seed, not by place
    shown = as_text(found)
    assert "-1.58  -2.46 … -0.7001  0.0028  paired, n = 10  A is better" in shown
    assert "the paired test of the differences" in shown


def test_other_seeds_are_compared_by_welch(tmp_path: Path) -> None:
    [pair] = compared(*sleep(tmp_path, first_seed=3), metrics=["last_loss"]).pairs
    assert pair.test is not None
    assert (pair.test.method, pair.verdict) == ("Welch", "no difference shown")
    assert pair.p == pytest.approx(0.07939, abs=5e-6)


def test_p_is_corrected_for_the_pairs_of_a_figure(tmp_path: Path) -> None:
    runs = sleep(tmp_path, first_seed=3)
    runs += [
        made(tmp_path / f"c{i}", i, value, settings=("lr.base=0.4",))
        for i, value in enumerate((5.1, 9.3))
    ]
    runs += [made(tmp_path / "d", 0, 5.0, settings=("lr.base=0.8",))]
    found = compared(*runs, metrics=["best_loss", "best_top1"])
    tested = [pair for pair in found.pairs if pair.test]
    assert [(p.a.letter + p.b.letter, p.figure.key) for p in tested] == [
        (letters, key) for key in ("best_loss", "best_top1") for letters in ("AB", "AC", "BC")
    ]
    by_size = sorted(tested[:3], key=lambda pair: pair.test.p if pair.test else 0)
    assert by_size[0].test is not None
    assert by_size[0].p == pytest.approx(3 * by_size[0].test.p)
    assert "A – D, B – D, C – D: one run says nothing about chance" in as_text(found)


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """Equal runs are equal to the bit: they would shrink every spread."""
    runs = [made(tmp_path / f"a{i}", 0, loss) for i, loss in enumerate((0.2, 0.4))]
    runs += [made(tmp_path / "b", 0, 0.5, settings=LR), made(tmp_path / "c", 1, 0.6, settings=LR)]
    found = compared(*runs)
    assert figure(found, 0, "best_loss") == "0.3"
    assert found.pairs[0].reason == "one run says nothing about chance"
    assert any("A: seed 0 ran more than once" in note for note in found.notes)


def test_other_images_are_not_compared(tmp_path: Path) -> None:
    def reason(name: str, **other: Any) -> str:
        first = [made(tmp_path / f"{name}{i}", i, 0.5 + i / 10) for i in range(2)]
        second = [
            made(tmp_path / f"{name}{i + 2}", i, 0.6 + i / 9, settings=LR, **other)
            for i in range(2)
        ]
        return compared(*first, *second).pairs[0].reason

    assert reason("same") == ""
    assert reason("val", val="cccc") == (
        "not comparable: validation images: hash aaaa against hash cccc"
    )
    assert reason("train", train="cccc") == ""  # a setting like others
    assert "hash aaaa against 50" in reason("unknown", val=None)
    a, b = made(tmp_path / "s0", 0, 0.5, val=None), made(tmp_path / "s1", 0, 0.5, val=None)
    assert any("is not recorded, only how many" in note for note in compared(a, b).notes)
    text = (b / "events.jsonl").read_text().replace('"images": 50', '"images": 60')
    (b / "events.jsonl").write_text(text)
    assert "validation images: 50 against 60" in compared(a, b).pairs[0].reason


def test_held_out_images_are_compared_seed_by_seed(tmp_path: Path) -> None:
    share = ("data.val=0.2",)

    def run(name: str, seed: int, mark: str, *more: str) -> Path:
        return made(tmp_path / name, seed, 0.5 + seed / 9, val=mark, settings=(*share, *more))

    first = [run("a0", 0, "x"), run("a1", 1, "y")]
    found = compared(*first, run("b0", 0, "x", *LR), run("b1", 1, "y", *LR))
    assert [len(group.runs) for group in found.groups] == [2, 2]
    assert found.pairs[0].reason == "no spread over seeds, so no test"  # equal but for the rate
    found = compared(*first, run("c0", 0, "x", *LR), run("c1", 1, "z", *LR))
    assert found.pairs[0].reason == "not comparable: other validation images with seed 1"
    assert any("held out by the seed" in note for note in found.notes)


def test_unfinished_runs_count_if_asked_for(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"a{i}", i, 0.5) for i in range(2)]
    runs += [made(tmp_path / f"b{i}", i, 0.4 + i / 10, settings=LR) for i in range(2)]
    killed = made(tmp_path / "b2", 2, 0.1, 0.1, settings=LR, finished=False)
    (killed / ".lock").write_text("host h, process 1, since today\nbeat 3\n")
    os.utime(killed / ".lock", (2e9, 2e9))  # not silent, however slow this machine is
    found = compared(*runs, killed)
    assert figure(found, 1, "best_loss") == "0.45 ± 0.071"
    assert figure(found, 1, "images_per_second") == "10"
    assert "B: b2 (training at epoch 2, counts in no result)" in found.notes
    assert "3 runs; seeds 0, 1, 2; 1 training" in as_text(found)
    os.utime(killed / ".lock", (1, 1))
    found = compared(*runs, killed, unfinished=True)
    assert figure(found, 1, "best_loss") == "0.3333 ± 0.21"
    assert "B: b2 (unfinished at epoch 2, counted as it stands)" in found.notes
    assert "no finished run in B" in as_text(compared(runs[0], killed))


def test_runs_of_other_versions(tmp_path: Path) -> None:
    """One without a config, and one whose config has a field that this version lacks."""
    old = restarted(tmp_path / "old", starts=False).root
    newer, own = made(tmp_path / "newer", 0, 0.5), made(tmp_path / "own", 0, 0.5)
    content = yaml.safe_load((newer / "config.yaml").read_text())
    content["train"]["magic"] = 3
    (newer / "config.yaml").write_text(yaml.safe_dump(content))
    found = compared(old, newer, own)
    assert [group.runs[0].facts.seed for group in found.groups] == [None, 0, 0]
    assert "old: it has no config.yaml, so its settings are not known" in found.notes
    assert any(
        note.startswith("newer: this version cannot read its config") for note in found.notes
    )
    differ = {each.key: each.cells for each in found.differences if not each.machine}
    assert differ["train.magic"] == ["–", "3", "–"]
    assert differ["ranks"] == ["8", "2", "2"]
    assert "lr.base" in differ  # known of two
    assert differ["lr.base"] == ["–", "0.1", "0.1"]
    with (own / "events.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert "own: damaged lines left out: 1" in compared(newer, own).notes


def test_many_groups_fit_the_width(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"r{i}", 0, 0.5, settings=(f"lr.base={i + 1}",)) for i in range(28)]
    found = compared(*runs)
    assert [group.letter for group in found.groups][24:] == ["Y", "Z", "AA", "AB"]
    tables = as_text(found, 80).split("\n\n")[1:-1]
    assert len(tables) > 4
    assert max(len(line) for table in tables for line in table.splitlines()) <= 80
