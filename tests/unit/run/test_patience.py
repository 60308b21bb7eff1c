"""`train.patience` and `train.stop_at`: a run ends by its evaluations, and that is its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.checkpoint_keep import why_kept
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.progress import Evaluated
from hvdtrain.errors import ConfigError
from hvdtrain.run.checkpoints import to_keep
from hvdtrain.run.patience import used_up
from hvdtrain.train import train
from tests.unit.run.data_runs import config
from tests.unit.run.test_weights import Killed, weights

EPOCHS = 6


@pytest.fixture
def work(work: Path) -> Path:
    """One image has another class's label: the loss soon rises with the network's confidence."""
    shutil.copy(work / "val/bee/10.jpg", work / "val/ant/12.jpg")
    return work


def patient(work: Path, patience: int | None, *settings: str) -> Config:
    text = yaml.safe_dump(config(work, EPOCHS).model_dump())
    limit = "null" if patience is None else patience
    more = [f"train.patience={limit}", "lr.base=0.05", "lr.scaling=none", f"output={work}/runs"]
    return parse_config(text, overrides=[*more, "train.compute_threads=1", *settings])


def losses(run: Path) -> list[tuple[float, float]]:
    """Epoch and loss of each evaluation, one of the same weights once."""
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [*{e["epoch"]: (e["epoch"], e["loss"]) for e in lines if e["kind"] == "eval"}.values()]


def expected_end(found: list[tuple[float, float]], patience: int) -> int:
    """The number of evaluations after which the rule ends a run."""
    for count in range(patience + 1, len(found) + 1):
        values = [loss for _, loss in found[:count]]
        if min(values[:-patience]) <= min(values[-patience:]):
            return count
    return len(found)


def test_the_rule(work: Path) -> None:
    """Where it ends a run is computed from the losses of a run that it does not end."""
    train(patient(work, None), Solo(), run_dir=work / "whole")
    found = losses(work / "whole")
    assert "best" not in json.loads((work / "whole/summary.json").read_text())
    ends = {patience: expected_end(found, patience) for patience in (1, 2)}
    assert 1 < ends[1] < ends[2] < EPOCHS, found  # or the test says little
    for patience, end in ends.items():
        run = work / f"p{patience}"
        summary = train(patient(work, patience), Solo(), run_dir=run)
        assert losses(run) == found[:end]
        best_epoch, best_loss = min(found[:end], key=lambda pair: pair[1])
        assert summary["best"] == {"loss": best_loss, "epoch": best_epoch, "step": 3 * best_epoch}
        assert (summary["stopped_early"], summary["loss"]) == (True, found[end - 1][1])
        saved = list_checkpoints(run / "checkpoints")
        reasons = why_kept(saved, to_keep(patient(work, patience)))
        kept = [p for p, why in reasons.items() if any("lowest validation" in w for w in why)]
        assert [read_meta(path)["loss"] for path in kept] == [best_loss]


def test_it_is_complete_and_goes_on_only_with_more_patience(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(patient(work, 1), Solo(), resume="auto")
    run = Path(first["run_dir"])
    again = train(patient(work, 1), Solo(), resume=str(run))
    for key in ("steps", "loss", "best", "stopped_early"):
        assert again[key] == first[key], key
    assert (run / "summary.json").exists()
    longer = train(patient(work, 2), Solo(), resume=str(run))
    whole = train(patient(work, 2), Solo(), run_dir=work / "whole")
    for key in ("steps", "loss", "best"):
        assert longer[key] == whole[key], key

    def never(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("hvdtrain.train.train_epoch", never)
    train(patient(work, 2), Solo(), resume=str(run))
    with pytest.raises(Killed):  # auto begins another run
        train(patient(work, 2), Solo(), resume="auto")


def test_a_kill_between_an_evaluation_and_its_checkpoint(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log then has an evaluation that the state does not know of."""
    whole = train(patient(work, 2, "checkpoint.every_epochs=3"), Solo(), run_dir=work / "whole")
    import hvdtrain.train as loop

    really, count = loop.save_after, 0

    def killed(*args: Any) -> None:
        nonlocal count
        count += 1
        if count % 2 == 0:
            raise Killed
        really(*args)

    cfg = patient(work, 2, "checkpoint.every_epochs=3")
    how: dict[str, Any] = {"run_dir": work / "run"}
    summary: dict[str, Any] = {}
    monkeypatch.setattr(loop, "save_after", killed)
    for _ in range(20):
        try:
            summary = train(cfg, Solo(), **how)
            break
        except Killed:
            if list_checkpoints(work / "run/checkpoints"):
                how = {"resume": str(work / "run")}
    for key in ("steps", "loss", "best", "stopped_early"):
        assert summary[key] == whole[key], key
    best = f"checkpoints/e{int(whole['best']['epoch']):04d}-s0000000000"
    assert torch.equal(weights(work / "run" / best), weights(work / "whole" / best))


def test_without_validation_images_it_is_refused(work: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train\.patience: 3, but there are no validation"):
        train(patient(work, 3, "data.val=null"), Solo(), run_dir=work / "run")
    with pytest.raises(ConfigError, match=r"^train\.stop_at: \{'top1': 0\.5\}, but there are no"):
        train(patient(work, None, "data.val=null", "train.stop_at.top1=0.5"), Solo())
    assert not (work / "run").exists()


def test_equal_losses_are_no_better_and_one_evaluation_counts_once() -> None:
    found = Evaluated().after(3, 1.0, 0.5, 0.25, 0.75)
    assert found == Evaluated(3, 0.5, 1.0, 3, 0, 0.5, 0.25, 0.75)
    assert found.after(3, 1.0, 0.5) == found
    assert found.after(6, 2.0, 0.5, 0.5, 1.0) == Evaluated(6, 0.5, 1.0, 3, 1, 0.5, 0.5, 1.0)
    assert found.after(6, 2.0, 0.4, 0.5, 1.0) == Evaluated(6, 0.4, 2.0, 6, 0, 0.4, 0.5, 1.0)


def test_a_run_ends_at_its_target_and_goes_on_with_a_higher_one(work: Path) -> None:
    train(patient(work, None), Solo(), run_dir=work / "whole")
    found = losses(work / "whole")
    target = min(loss for _, loss in found)
    end = [loss for _, loss in found].index(target) + 1
    assert 1 < end < EPOCHS, found  # or the test says little
    cfg = patient(work, None, f"train.stop_at.loss={target}")
    first = train(cfg, Solo(), run_dir=work / "run")
    assert (first["stopped_early"], first["loss"], first["steps"]) == (True, target, 3 * end)
    notes = (work / "run/events.jsonl").read_text()
    assert f"train.stop_at: the run ends: loss {target:.4f} in the last evaluation" in notes
    again = train(cfg, Solo(), resume=str(work / "run"))
    assert again["steps"] == first["steps"]
    higher = patient(work, None, "train.stop_at.loss=1e-9")
    longer = train(higher, Solo(), resume=str(work / "run"))
    assert (longer["stopped_early"], longer["steps"]) == (False, 3 * EPOCHS)
    newest = f"checkpoints/e{EPOCHS:04d}-s0000000000"
    assert torch.equal(weights(work / "run" / newest), weights(work / "whole" / newest))


def test_a_run_ends_with_the_epoch_in_which_its_time_is_over(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hvdtrain.train as loop

    really = loop.train_step

    def killed(*args: Any, **kwargs: Any) -> torch.Tensor:
        if args[0].progress.step == 4:
            raise Killed
        return really(*args, **kwargs)

    short = patient(work, None, "train.stop_at.minutes=1e-9", "checkpoint.every_steps=1")
    run, unhurried = work / "run", patient(work, None, "checkpoint.every_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        with pytest.raises(Killed):
            train(unhurried, Solo(), run_dir=run)
    assert list_checkpoints(run / "checkpoints")[0].name == "e0001-s0000000004"
    first = train(
        short, Solo(), resume=str(run)
    )  # its time is over: it ends the epoch all the same
    assert (first["stopped_early"], first["steps"], "best" in first) == (True, 6, False)
    assert [epoch for epoch, _ in losses(run)] == [1.0, 2.0]
    notes = (run / "events.jsonl").read_text()
    assert "train.stop_at.minutes: the run ends: " in notes
    assert '"train.stop_at.minutes", "kind": "plan", "before": "null", "after": "1e-09"' in notes
    assert train(short, Solo(), resume=str(run))["steps"] == 6
    longer = patient(work, None, "train.stop_at.minutes=1e9")
    assert train(longer, Solo(), resume=str(run))["stopped_early"] is False
    train(patient(work, None), Solo(), run_dir=work / "whole")
    newest = f"checkpoints/e{EPOCHS:04d}-s0000000000"
    assert torch.equal(weights(run / newest), weights(work / "whole" / newest))
    alone = patient(work, None, "train.stop_at.minutes=1e-9", "data.val=null")
    summary = train(alone, Solo(), run_dir=work / "alone")
    assert (summary["steps"], summary["stopped_early"], "loss" in summary) == (3, True, False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], False),
        (["top1=0.5"], True),
        (["top1=0.51"], False),
        (["top5=0.9"], True),
        (["loss=0.7"], True),
        (["loss=0.69"], False),
        (["top1=0.5", "loss=0.69"], False),
        (["top1=0.5", "top5=0.9", "loss=0.7"], True),
    ],
)
def test_targets(work: Path, settings: list[str], expected: bool) -> None:
    cfg = patient(work, None, *(f"train.stop_at.{each}" for each in settings))
    found = Evaluated().after(3, 1.0, 0.7, 0.5, 0.9)
    assert used_up(cfg, found) == expected
    assert not used_up(cfg, Evaluated())
