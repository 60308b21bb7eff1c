"""The noise scale of runs: what they recorded, and what is measured at their checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from hvdtrain.analysis.study.images import Choice, fixed_images, open_images
from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.analysis.study.noise.estimate import Sums, estimate
from hvdtrain.analysis.study.noise.measure import measure, sums_over_ranks
from hvdtrain.analysis.study.noise.of import noise_scale_of
from hvdtrain.analysis.study.noise.recorded import read_recorded
from hvdtrain.analysis.study.noise.training_loss import TrainingLoss
from hvdtrain.analysis.study.opened import opened
from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.build import set_up
from hvdtrain.errors import CheckpointError, ConfigError, ResourceError
from hvdtrain.run.subject import find_subjects
from pipelines.fixed import chosen_batches
from pipelines.loader import Batch
from tests.noise_problem import BATCH, EXACT, FEATURES, batches
from tests.noise_runs import recorded_run
from tests.study_runs import made_run

SMALL = Choice(images=22, batch=4, dtype="fp64")


def test_parts_of_a_recorded_run(tmp_path: Path) -> None:
    """Values 100 to 800 in reports of 10 updates; the batch doubles in the second phase."""
    scales = [100.0, 200.0, 300.0, None, 500.0, 600.0, 700.0, 800.0]
    run = recorded_run(
        tmp_path / "run", scales, batches=[64] * 4 + [128] * 4, phases=[0] * 4 + [1] * 4
    )
    found = read_recorded(run)
    assert found.known == pytest.approx(7 / 8)
    parts = {part.name: part for part in found.parts()}
    assert list(parts) == ["all", *(f"quarter {n}" for n in (1, 2, 3, 4)), "phase 0", "phase 1"]
    assert [parts[f"quarter {n}"].mean for n in (1, 2, 3, 4)] == pytest.approx([150, 300, 550, 750])
    assert parts["quarter 1"].deviation == pytest.approx(50)
    assert parts["quarter 2"].known == 0.5
    assert (parts["quarter 4"].low, parts["quarter 4"].high) == (700, 800)
    assert parts["phase 1"].mean == pytest.approx(650)
    assert parts["phase 1"].batch_over_noise == pytest.approx(128 / 650)
    assert parts["all"].mean == pytest.approx(3200 / 7)
    assert parts["all"].batch == 96


def test_a_run_without_a_recorded_noise_scale_says_what_to_do(
    small_root: Path, tmp_path: Path
) -> None:
    made_run(tmp_path / "one", small_root)
    run = recorded_run(tmp_path / "one", [None] * 3, ranks=1)
    with pytest.raises(ResourceError) as refused:
        read_recorded(run)
    line = str(refused.value)
    assert "2 ranks or train.accumulate 2" in line
    assert line.endswith(f"hvdtrain study noise-scale {run}/checkpoints/e0001-s0000000000")
    off: dict[str, Any] = {"train.noise_scale_every": 0}
    made_run(tmp_path / "off", small_root, **off)
    with pytest.raises(ResourceError, match="noise_scale_every is 0"):
        read_recorded(recorded_run(tmp_path / "off", [None], ranks=2))
    with pytest.raises(ResourceError, match="the noise hid the signal in every report"):
        read_recorded(recorded_run(tmp_path / "hidden", [None, -5.0], ranks=2))
    with pytest.raises(ResourceError, match="not a run directory"):
        read_recorded(tmp_path)


def test_the_noise_scale_of_a_run_is_recorded_or_measured(small_root: Path, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", small_root, checkpoints=2)
    recorded_run(run, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 90.0])
    found = noise_scale_of(run)
    assert (found.source, found.scale, found.low, found.high) == ("recorded", 80, 70, 90)
    assert found.text() == "80 (70–90)"
    measured = noise_scale_of(run, source="checkpoint", choice=SMALL)
    assert measured.source == "checkpoint"
    assert measured.place.endswith("e0002-s0000000000")
    first = noise_scale_of(
        run,
        source="checkpoint",
        checkpoint=run / "checkpoints/e0001-s0000000000",
        choice=SMALL,
    )
    assert first.as_dict() != measured.as_dict()
    (run / "events.jsonl").unlink()
    assert noise_scale_of(run, choice=SMALL) == measured
    with pytest.raises(
        ResourceError, match=r"no events\.jsonl: measure it at a checkpoint: hvdtrain"
    ):
        noise_scale_of(run, source="recorded")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        noise_scale_of(tmp_path)


def test_sums_are_those_of_the_gradients_of_single_images() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(24, 6, generator=random).double()
    labels = torch.randint(3, (24,), generator=random)
    torch.manual_seed(1)
    model = nn.Linear(6, 3).double()
    cut = [slice(0, 3), slice(3, 6), slice(6, 8), *(slice(n, n + 4) for n in range(8, 24, 4))]
    data = [
        Batch(images[part], labels[part], torch.ones(len(labels[part])), np.arange(0), 0)
        for part in cut
    ]
    sums, mean = sums_over_ranks(NetworkLoss(model, data, 24, torch.float64), Solo())
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = functional.cross_entropy(model(image[None]), label[None])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]).numpy())
    single = np.array(rows)
    groups = np.array([single[part].sum(0) for part in cut])
    assert sums.sizes.tolist() == [3, 3, 2, 4, 4, 4, 4]
    assert sums.squares == pytest.approx((groups**2).sum(1), rel=1e-12)
    assert sums.products == pytest.approx(groups @ single.sum(0), rel=1e-12)
    assert mean == pytest.approx(functional.cross_entropy(model(images), labels).item())


def test_gradients_are_those_of_a_training_step(small_root: Path, tmp_path: Path) -> None:
    """The first batch of the epoch, as the loader of a run gives it; weights that are trained, not averaged."""
    how: dict[str, Any] = {
        "data.augment": "pad_crop",
        "data.color_jitter": "[0.3,0.3,0,0]",
        "data.rand_augment": "[1,5]",
        "train.ema_decay": 0.9,
        "train.label_smoothing": 0.1,
        "phases.0.batch_per_worker": 6,
    }
    run = made_run(tmp_path / "run", small_root, **how)
    [subject] = find_subjects([run], [], Solo())
    with set_up(subject.cfg, Solo()) as parts:
        model = parts.state.model.train()
        path = run / "checkpoints/e0001-s0000000000/model.safetensors"
        model.load_state_dict(safetensors.torch.load_file(path))
        _i, first = next(iter(parts.loaders.train(parts.plan.epochs[0])))
        logits, ids = model(first.images), first.indices.copy()
        loss = functional.cross_entropy(logits, first.labels, label_smoothing=0.1)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    choice = Choice(images=22, batch=6)
    source = open_images(subject, choice, "train").source
    with opened(subject, choice, Solo(), whole=False, training=True) as it:
        chosen = (subject, choice, source, [ids], Solo(), it.loss.device, 1)
        with fixed_images(*chosen, training=True) as images:
            it.loss.images = images
            [(count, value, gradient)] = TrainingLoss(it, subject, Solo()).batch_gradients()
        train = subject.cfg.train.model_copy(update={"mix_partner": "doubled"})
        paired = replace(subject, cfg=subject.cfg.model_copy(update={"train": train}))
        with pytest.raises(ConfigError, match="images come without partners here"):
            TrainingLoss(it, paired, Solo())
        teacher = subject.cfg.train.teacher.model_copy(update={"weights": "teacher"})
        trained = subject.cfg.train.model_copy(update={"teacher": teacher})
        taught = replace(subject, cfg=subject.cfg.model_copy(update={"train": trained}))
        with pytest.raises(ConfigError, match=r"trained with train\.teacher, whose share"):
            TrainingLoss(it, taught, Solo())
    assert count == 6
    assert float(value) / 6 == pytest.approx(loss.item(), rel=1e-5)
    reference = torch.cat([each.flatten() for each in gradients]).double().numpy()
    assert (gradient / 6).numpy() == pytest.approx(reference, rel=1e-3, abs=1e-6)
    measured, found = measure(subject, choice, Solo())
    assert measured.loss.model.training
    assert (subject.averaged, measured.about["averaged_weights"]) == (True, False)
    assert found["batches"] == 16


def test_the_noise_scale_of_a_problem_with_a_known_one() -> None:
    """That of `tests/noise_problem.py`, in which the free estimate of training is tested as well."""
    model = nn.Linear(FEATURES, 2, bias=False)
    nn.init.zeros_(model.weight)
    data = [
        Batch(each.images, each.labels, each.weights, np.arange(0), 0)
        for each in batches(Solo(), 32)
    ]
    sums, _loss = sums_over_ranks(NetworkLoss(model, data, 32 * BATCH, torch.float64), Solo())
    found = estimate(sums)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0.8 * EXACT < found.low < EXACT < found.high < 1.25 * EXACT


def test_batches_are_random_samples_and_not_stratified() -> None:
    """Images of a folder, sorted by class, whose gradient is that of their class: where every batch has the
    same share of each class, as in the other studies, no noise is seen."""
    gradients = np.repeat([[1.0, 0.0], [0.0, 1.0]], 4000, axis=0)

    def of(batches: list[np.ndarray]) -> Sums:
        rows = np.array([gradients[ids].sum(0) for ids in batches])
        sizes = np.array([float(len(ids)) for ids in batches])
        return Sums(sizes, (rows**2).sum(1), rows @ rows.sum(0))

    trace, _ = of(chosen_batches(8000, 8000, 20, 0, shuffled=True)).moments()
    assert trace == pytest.approx(0.5, rel=0.2)
    stratified, _ = of(chosen_batches(8000, 8000, 20, 0)).moments()
    assert stratified < 0.02
    few = chosen_batches(30, 30, 125, 0, shuffled=True, fewest=8)
    assert sorted(map(len, few)) == [3, 3, 4, 4, 4, 4, 4, 4]
    assert sorted(np.concatenate(few).tolist()) == list(range(30))
