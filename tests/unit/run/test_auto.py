"""Which run `--resume` goes on with, and what it says of others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hvdtrain.comm.ranks import Solo
from hvdtrain.errors import ConfigError
from hvdtrain.run.directory import run_directory
from tests.unit.run.data_runs import changed


def made_run(root: Path, *settings: str, epoch: int = 1, world_size: int = 1) -> Path:
    """A run directory as far as the choice of one looks into it."""
    checkpoint = root / f"checkpoints/e{epoch:04d}-s0000000000"
    checkpoint.mkdir(parents=True)
    names = ("model.safetensors", "optimizer.safetensors")
    meta: dict[str, Any] = {
        "format": 1,
        "position": {"epoch": epoch, "sample": 0},
        "step": 9,
        "samples": 90,
        "train_seconds": 1.0,
        "world_size": world_size,
        "scaler": {},
        "labels": {},
        "sha256": dict.fromkeys(names, "0" * 64),
    }
    seal = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (checkpoint / "meta.json").write_text(json.dumps({"meta": meta, "seal": seal}))
    cfg = changed(f"output={root.parent}", *settings)
    (root / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump()))
    return root


def chosen(output: Path, *settings: str, accept: bool = False) -> tuple[str | None, list[str]]:
    """The run that auto goes on with, and what it says of others."""
    cfg = changed(f"output={output}", *settings)
    directory = run_directory(cfg, Solo(), "auto", None, accept)
    if directory.lock is not None:
        directory.lock.release()
    name = directory.paths.root.name if directory.must_resume else None
    return name, directory.notes


class FourRanks(Solo):
    """Rank 0 of four."""

    size = 4


def passed(output: Path, name: str, why: str) -> str:
    return f"--resume auto passes over {output}/{name}: {why}"


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_same_identity(tmp_path: Path) -> None:
    made_run(tmp_path / "t-20260101-000000", "data.decode_threads=2")
    made_run(tmp_path / "t-20260102-000000")
    made_run(tmp_path / "t-20260103-000000", "lr.base=0.2", "seed=3")
    (made_run(tmp_path / "t-20260104-000000") / "summary.json").write_text("{}")
    made_run(tmp_path / "t-7-20260105-000000", "name=t-7", "seed=3")
    over = passed(tmp_path, "t-20260103-000000", "seed 3 → 0")
    assert chosen(tmp_path) == ("t-20260102-000000", [over])
    # Neither decoding threads nor the same batch by other means make another run.
    assert chosen(tmp_path, "data.decode_threads=7", "phases.1.epochs=5") == (
        "t-20260102-000000",
        [over],
    )
    halved = [f"phases.{i}.batch_per_worker={n}" for i, n in ((0, 4), (1, 2))]
    assert chosen(tmp_path, "train.accumulate=2", *halved)[0] == "t-20260102-000000"
    assert chosen(tmp_path, "lr.base=0.2", "seed=3") == ("t-20260103-000000", [])


def test_auto_says_how_to_keep_a_global_batch_that_is_changed(tmp_path: Path) -> None:
    made_run(tmp_path / "t-20260101-000000", world_size=2)
    why = "global batch of phases.0 16 → 24 (train.accumulate=2 keeps it)"
    assert chosen(tmp_path, "train.accumulate=3") == (
        None,
        [passed(tmp_path, "t-20260101-000000", why)],
    )
    assert chosen(tmp_path, "train.accumulate=2")[0] == "t-20260101-000000"


def test_auto_keeps_the_global_batch_on_other_ranks_or_refuses(tmp_path: Path) -> None:
    made_run(tmp_path / "t-20260101-000000", world_size=2)
    assert chosen(tmp_path) == ("t-20260101-000000", [])
    made_run(tmp_path / "t-20260102-000000", "phases.0.batch_per_worker=9", world_size=5)
    odd = "phases.0.batch_per_worker=9"
    ranks = ["seed=0", odd]
    with pytest.raises(ConfigError) as error:
        run_directory(changed(f"output={tmp_path}", *ranks), FourRanks(), "auto", None)
    assert str(error.value).removeprefix("rank 0: ") == (
        f"{tmp_path}/t-20260102-000000: 4 ranks cannot share the global batch of 45 and 20 images "
        "equally: use 1 or 5 ranks, or let it change with train.on_other_ranks=as_given"
    )
    other = changed(f"output={tmp_path}", odd, "seed=3")
    directory = run_directory(other, FourRanks(), "auto", None)
    assert not directory.must_resume
    assert directory.notes[0].startswith(passed(tmp_path, "t-20260102-000000", "seed 0 → 3"))


def test_auto_says_what_it_passes_over_before_it_starts_anew(tmp_path: Path) -> None:
    for day in range(1, 6):
        made_run(tmp_path / f"t-2026010{day}-000000")
    (tmp_path / "t-20260106-000000").mkdir()
    made_run(tmp_path / "t-20260107-000000", "phases.1.epochs=40", epoch=10)
    (made_run(tmp_path / "t-20260108-000000") / "config.yaml").unlink()
    name, found = chosen(tmp_path, "optimizer.momentum=0.5")
    assert name is None
    assert found == [
        passed(tmp_path, "t-20260108-000000", f"{tmp_path}/t-20260108-000000/config.yaml: cannot read the config: No such file or directory"),
        passed(tmp_path, "t-20260107-000000", "phases: 6 epochs in all, of a run that is at epoch 10, image 0: set more epochs"),
        passed(tmp_path, "t-20260106-000000", "it has no checkpoint"),
        "--resume auto passes over 5 more unfinished runs",
    ]  # fmt: skip


def test_auto_takes_other_settings_if_they_are_accepted(tmp_path: Path) -> None:
    made_run(tmp_path / "t-20260101-000000")
    made_run(tmp_path / "t-20260102-000000", "lr.base=0.3")
    (made_run(tmp_path / "t-20260103-000000") / "config.yaml").write_text("old: 1")
    name, found = chosen(tmp_path, "lr.base=0.2", accept=True)
    assert name == "t-20260102-000000"
    assert len(found) == 1
    assert "t-20260103-000000/config.yaml" in found[0]
    assert chosen(tmp_path, accept=True)[0] == "t-20260101-000000"  # the same are preferred


@pytest.mark.parametrize("form", ["--resume R", "--run-dir R --resume auto"])
def test_a_named_run_is_held_to_its_settings(tmp_path: Path, form: str) -> None:
    root = made_run(tmp_path / "r", epoch=4, world_size=2)
    named = (str(root), None) if form == "--resume R" else ("auto", root)
    with pytest.raises(ConfigError) as error:
        run_directory(changed("lr.base=0.25"), Solo(), *named)
    assert str(error.value) == (
        f"{root}: not the settings that this run began with: lr.base 0.1 → 0.25: set them back, or "
        "go on with these by --accept-changes"
    )
    with pytest.raises(
        ConfigError, match=rf"^{root}: phases: 3 epochs in all, of a run that is at"
    ):
        run_directory(changed("phases.1.epochs=1"), Solo(), *named, accept=True)
    directory = run_directory(changed("lr.base=0.25"), Solo(), *named, accept=True)
    assert [change.setting for change in directory.changes] == [
        *("lr.base", "train.accumulate", "ranks")
    ]
    assert directory.kept == (
        "resumed on 1 rank instead of 2: 2 accumulation steps keep the global batch of 16 and 8"
    )


def test_settings_that_are_not_known_any_more(tmp_path: Path) -> None:
    root = made_run(tmp_path / "r")
    (root / "config.yaml").unlink()
    with pytest.raises(ConfigError) as error:
        run_directory(changed(), Solo(), str(root), None)
    assert str(error.value) == (
        f"{root}: the settings that this run began with are not known: {root}/config.yaml: cannot "
        "read the config: No such file or directory: go on with those of now by --accept-changes"
    )
    [note] = run_directory(changed(), Solo(), str(root), None, accept=True).notes
    assert note.startswith("the settings that this run began with are not known: ")
