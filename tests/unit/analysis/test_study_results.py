"""The numbers of a study against direct computations from runs, gradients and made values."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch.nn import functional

from hvdtrain.analysis.spread import spread
from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.gradients import (
    best_checkpoint,
    measure,
    noise_scale,
    start_checkpoint,
)
from hvdtrain.analysis.study.member_results import Result, _merged, result_of
from hvdtrain.analysis.study.page import sections_of
from hvdtrain.analysis.study.surfaces import Around
from hvdtrain.analysis.study.table import (
    Group,
    as_csv,
    as_json,
    epoch_ratios,
    groups_of,
    split,
)
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import set_up
from hvdtrain.errors import CheckpointError
from hvdtrain.report.curves import Curve
from hvdtrain.report.study import write_study
from hvdtrain.train import train
from tests.unit.run.data_runs import COLOURS, config, write

MEMBER = Member("m", 4, "none", 0.05, 0, 1, ())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of three epochs of three updates each."""
    work = tmp_path_factory.mktemp("results")
    write(work / "train", list(COLOURS))
    write(work / "val", list(COLOURS), 2, 10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hvdtrain.train.write_page", lambda run: None)
        train(config_of(work), Solo(), run_dir=work / "run")
    return work


def config_of(work: Path) -> Any:
    text = yaml.safe_dump(config(work, 3).model_dump())
    more = ["metrics.weights=true", "train.patience=9", "train.compute_threads=1"]
    more += ["checkpoint.every_steps=1", "checkpoint.keep=99", "model.name=resnet8_gn"]
    return parse_config(text, overrides=[*more, "lr.base=0.05", "lr.scaling=none"])


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in lines if event["kind"] == kind]


def test_a_result_is_what_the_log_says(trained: Path) -> None:
    run = trained / "run"
    found = result_of(MEMBER, run, finished=True, diverged=False)
    evals, steps, weights = (events(run, kind) for kind in ("eval", "train", "weights"))
    best = min(evals, key=lambda event: event["loss"])
    assert (found.best_loss, found.best_top1) == (best["loss"], best["top1"])
    assert (found.epochs_to_best, found.updates_to_best) == (best["epoch"], best["step"])
    before = [event for event in steps if event["step"] <= best["step"]]
    assert found.seconds_to_best == pytest.approx(sum(event["seconds"] for event in before))
    last = before[-3:]  # each report is one update of 4 images
    loss = statistics.fmean(event["loss"] for event in last)
    assert found.train_loss == pytest.approx(loss)
    assert found.gap == pytest.approx(best["loss"] - loss)
    by_epoch = [sum(e["seconds"] for e in steps[3 * i : 3 * i + 3]) for i in range(3)]
    assert found.seconds_per_epoch == pytest.approx(statistics.median(by_epoch))
    at_best = weights[int(best["epoch"]) - 1]
    assert found.distance == at_best["distance"]
    assert found.layer_distances == at_best["layer_distances"]
    assert found.path_length == pytest.approx(statistics.fmean(w["path_length"] for w in weights))
    assert found.curves["distance"].steps == [3, 6, 9]
    assert found.curves["validation loss"].values == [event["loss"] for event in evals]
    row = next(csv.DictReader(io.StringIO(as_csv([found]))))
    assert float(row["best_loss"]) == best["loss"]
    assert float(row["distance of stem.0"]) == at_best["layer_distances"]["stem.0"]


def test_the_median_of_all_updates() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.lognormal(i / 4, 0.5, 200 + 300 * i) for i in range(4)]
    reports = [
        {"update_norms": np.percentile(part, range(101)).tolist(), "updates": len(part)}
        for part in parts
    ]
    norms, count = _merged(reports)
    whole = np.concatenate(parts)
    assert count == len(whole)
    for share in (5, 25, 50, 75, 95):
        rank = 100 * float((whole <= norms[share]).mean())
        assert rank == pytest.approx(share, abs=1.0)


def test_gradients_of_pairs(trained: Path) -> None:
    cfg, run = config_of(trained), trained / "run"
    paths = {"start": start_checkpoint(run), "best": best_checkpoint(run)}
    losses = {event["step"]: event["loss"] for event in events(run, "eval")}
    assert paths["best"].name == f"e{min(losses, key=losses.__getitem__) // 3:04d}-s0000000000"
    found = measure(cfg, paths, pairs=1)
    with set_up(cfg, Solo()) as parts:
        batches = [batch for _i, batch in parts.loaders.train(parts.plan.epochs[0])][:2]
        for name, path in paths.items():
            model = parts.state.model
            model.load_state_dict(safetensors.torch.load_file(path / "model.safetensors"))
            grads = []
            for images, labels in ((b.images, b.labels) for b in batches):
                model.zero_grad()
                loss = functional.cross_entropy(model(images), labels)
                grads.append(torch.cat([g.flatten() for g in gradient(loss, model)]).double())
            a, b = grads
            assert found[name].together == pytest.approx((a + b).norm().item() / 2, rel=1e-5)
            assert found[name].apart == pytest.approx((a.norm() + b.norm()).item() / 2, rel=1e-5)
            assert found[name].ratio < 1
    missing = trained / "none"
    for what in (start_checkpoint, best_checkpoint):
        with pytest.raises(CheckpointError, match="no "):
            what(missing)


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, list(model.parameters()))


def test_the_noise_scale_of_made_gradients() -> None:
    """|g|² of b images is |G|² + tr Σ / b: the formula gives tr Σ / |G|² back."""
    signal, trace, batch = 0.3, 50.0, 32
    small, big = signal + trace / batch, signal + trace / (2 * batch)
    assert noise_scale(batch, small, big) == pytest.approx(trace / signal)
    assert noise_scale(batch, small, small / 2) is None


def made(batch: int, seed: int, **numbers: Any) -> Result:
    """A result whose epochs move 1/batch less each time."""
    steps = 512 / batch
    moved = [1.0 / batch, 0.5 / batch**1.2, 0.25 / batch**1.4]
    curve = Curve([1.0, 2.0, 3.0], [steps, 2 * steps, 3 * steps], [1.0, 2.0, 3.0], moved)
    values: dict[str, Any] = {
        **dict.fromkeys(Result.__dataclass_fields__, None),
        "name": f"b{batch}-{seed}",
        "batch": batch,
        "scaling": "none",
        "rate": 0.01,
        "seed": seed,
        "ranks": 1,
        "finished": True,
        "diverged": False,
        "epochs": 3.0,
        "updates": 3 * steps,
        "updates_per_epoch": steps,
        "path_length": 3 * steps / batch,
        "epoch_distance": 2.0 / batch,
        "layer_distances": {"a": 1.0 + seed},
        "sharpness": {},
        "best_loss": 0.5 + seed,
        "update_norms": [0.01 * (1 + i) / batch for i in range(101)],
        "curves": dict.fromkeys(
            ("validation loss", "training loss", "top-1", "distance", "epoch distance"), curve
        ),
    }
    return Result(**{**values, **numbers})


def test_spread_split_and_ratios(tmp_path: Path) -> None:
    groups = groups_of([made(b, seed) for seed in (0, 1, 2) for b in (32, 128)])
    first, other = groups
    assert [group.batch for group in groups] == [32, 128]
    loss = first.of("best_loss")
    assert loss is not None
    assert (loss.mean, loss.deviation, loss.count) == (1.5, 1.0, 3)
    assert first.of("layer:a") == spread([1.0, 2.0, 3.0])
    assert first.of("gap") is None
    parts = split(first, other)
    assert parts is not None
    assert (parts.fewer, parts.smaller, parts.together) == pytest.approx((4.0, 4.0, 16.0))
    assert parts.share_of_fewer == pytest.approx(0.5)
    assert (parts.distance, parts.straighter) == pytest.approx((4.0, 4.0))
    assert epoch_ratios(first, other) == pytest.approx([4.0, 4**1.2, 4**1.4])
    numbers = as_json(groups)[1]
    assert numbers["best_loss"] == {"mean": 1.5, "deviation": 1.0, "count": 3}
    assert numbers["against_first"]["split"]["smaller"] == pytest.approx(4.0)
    assert numbers["against_first"]["epoch_distance_ratios"] == epoch_ratios(first, other)
    pictures = tmp_path / "pictures"
    sections = sections_of(groups, {}, Around())
    drawn = [sections[0], *(replace(s, charts=s.charts[:1]) for s in sections[2:6])]
    write_study(tmp_path / "r.html", pictures, "<s>", "about", drawn)
    page = (tmp_path / "r.html").read_text()
    assert "&lt;s&gt;" in page
    assert "1.5 ± 1" in page
    for stem in ("best-loss", "distance", "epoch-distance", "update-norms"):
        assert (pictures / f"{stem}.png").stat().st_size > 5000
        assert (pictures / f"{stem}.svg").is_file()
        assert f'id="{stem}-' in page


def test_what_diverged_counts_in_no_mean() -> None:
    results = [made(32, 0), made(32, 1, diverged=True, best_loss=99.0)]
    [group] = groups_of(results)
    assert group.diverged == 1
    assert group.of("best_loss") == spread([0.5])
    assert isinstance(group, Group)
