"""What `metrics.weights` reports, against the checkpoints of every update; and across stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.checkpoint_keep import why_kept
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.step import train_step
from hvdtrain.errors import ConfigError
from hvdtrain.run.checkpoints import to_keep
from hvdtrain.run.pruning import prune
from hvdtrain.train import train
from tests.unit.run.data_runs import config

EPOCHS, STEPS = 2, 3


class Killed(BaseException):
    pass


def measured(work: Path, *settings: str) -> Config:
    text = yaml.safe_dump(config(work, EPOCHS).model_dump())
    more = ["metrics.weights=true", "train.compute_threads=1", *settings]
    return parse_config(text, overrides=more)


def reports(run: Path) -> list[dict[str, Any]]:
    """Of each epoch the last one, without its time."""
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    found = {event["epoch"]: event for event in lines if event["kind"] == "weights"}
    return [{k: v for k, v in found[epoch].items() if k != "time"} for epoch in sorted(found)]


def weights(checkpoint: Path, prefix: str = "") -> torch.Tensor:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "running_" not in n and "num_batches" not in n}
    return torch.cat(
        [t.double().flatten() for n, t in sorted(kept.items()) if n.startswith(prefix)]
    )


def test_measures_are_those_of_the_checkpoints(work: Path) -> None:
    run = work / "run"
    train(measured(work, "checkpoint.every_steps=1", "checkpoint.keep=99"), Solo(), run_dir=run)
    saved = list(reversed(list_checkpoints(run / "checkpoints")))
    assert len(saved) == 1 + EPOCHS * STEPS
    points = [weights(path) for path in saved]
    for epoch, report in enumerate(reports(run)):
        first, last = epoch * STEPS, (epoch + 1) * STEPS
        assert (report["epoch"], report["step"], report["updates"]) == (epoch + 1, last, STEPS)
        norms = [(points[i + 1] - points[i]).norm().item() for i in range(first, last)]
        assert report["path_length"] == pytest.approx(sum(norms), rel=1e-5)
        expected = np.percentile(norms, range(101))
        assert report["update_norms"] == pytest.approx(expected.tolist(), rel=1e-5)
        for key, layers, origin in (
            ("distance", "layer_distances", 0),
            ("epoch_distance", "layer_epoch_distances", first),
        ):
            moved = (points[last] - points[origin]).norm().item()
            assert report[key] == pytest.approx(moved, rel=1e-9)
            for layer, value in report[layers].items():
                each = weights(saved[last], f"{layer}.") - weights(saved[origin], f"{layer}.")
                assert value == pytest.approx(each.norm().item(), rel=1e-9), layer
            assert sum(v**2 for v in report[layers].values()) == pytest.approx(moved**2)


def test_the_start_is_kept_for_good(work: Path) -> None:
    run, cfg = work / "run", measured(work, "metrics.weights=false", "checkpoint.keep_start=true")
    cfg = cfg.model_copy(update={"checkpoint": cfg.checkpoint.model_copy(update={"keep": 1})})
    train(cfg, Solo(), run_dir=run)
    assert reports(run) == []
    found = list_checkpoints(run / "checkpoints")
    assert [path.name for path in found] == ["e0002-s0000000000", "e0000-s0000000000"]
    assert why_kept(found, to_keep(cfg))[found[1]] == ["start"]
    assert prune(run, 1, dry_run=False).deleted == []


def test_without_the_switch_nothing_is_written(work: Path) -> None:
    train(measured(work, "metrics.weights=false"), Solo(), run_dir=work / "run")
    assert reports(work / "run") == []
    names = {path.name for path in list_checkpoints(work / "run/checkpoints")}
    assert names == {"e0001-s0000000000", "e0002-s0000000000"}
    with pytest.raises(ConfigError, match=r"^metrics\.weights: .*run has no e0000-s0000000000"):
        train(measured(work), Solo(), resume=str(work / "run"))


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains until that many updates were made, and then dies without another word."""

    def run(cfg: Config, updates: int, **how: Any) -> None:
        left = updates

        def step(*args: Any, **more: Any) -> torch.Tensor:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return train_step(*args, **more)

        with monkeypatch.context() as patched:
            patched.setattr("hvdtrain.train.train_step", step)
            with pytest.raises(Killed):
                train(cfg, Solo(), **how)

    return run


@pytest.mark.parametrize("every", [1, 2])
def test_stops_in_mid_epoch_change_no_bit_of_it(work: Path, killed_at: Any, every: int) -> None:
    """`every`: updates from one checkpoint to the next; those after the last one are made again."""
    cfg = measured(work, f"checkpoint.every_steps={every}", "train.patience=5")
    train(cfg, Solo(), run_dir=work / "whole")
    killed_at(cfg, 2, run_dir=work / "run")
    for updates in (1, 0, 2):
        killed_at(cfg, updates, resume=str(work / "run"))
    train(cfg, Solo(), resume=str(work / "run"))
    assert reports(work / "run") == reports(work / "whole")
    summaries = [json.loads((work / run / "summary.json").read_text()) for run in ("run", "whole")]
    for key in ("best", "stopped_early", "loss"):
        assert summaries[0][key] == summaries[1][key]
    for path in list_checkpoints(work / "whole/checkpoints"):
        same = work / "run/checkpoints" / path.name
        assert torch.equal(weights(same), weights(path))


def test_an_epoch_that_it_was_on_for_a_part_of_is_left_out(work: Path, killed_at: Any) -> None:
    off = measured(
        *(work, "metrics.weights=false", "checkpoint.keep_start=true", "checkpoint.every_steps=1")
    )
    killed_at(off, 2, run_dir=work / "run")
    train(measured(work), Solo(), resume=str(work / "run"))
    assert [report["epoch"] for report in reports(work / "run")] == [2.0]
    assert "epoch 1 is left out" in (work / "run/events.jsonl").read_text()
