"""The LR range test and the search for the largest batch: correct, and without side effects."""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from hvdtrain.analysis import largest_batch, lr_range, tune
from hvdtrain.analysis.largest_batch import Memory, Trial, best
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config, Model, Phase
from hvdtrain.engine.build import Parts, set_up
from hvdtrain.engine.calibrate import WorkerSpeed
from hvdtrain.engine.step import train_step
from hvdtrain.errors import ConfigError, ResourceError, TrainingError
from hvdtrain.models import build_model
from hvdtrain.optim import optimizer_tensors
from hvdtrain.plan.epochs import make_plan

CONFIG = """
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.1, base_batch: 16, warmup: none, schedule: constant}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: 32}}
  - {{epochs: 1, image_size: 24, batch_per_worker: 16}}
train: {{precision: {precision}}}
"""


def config(root: Path, precision: str = "fp32") -> Config:
    return parse_config(CONFIG.format(root=root, precision=precision))


def digest(parts: Parts) -> str:
    """Everything that training changes, and the batches it would see next."""
    state = parts.state
    found = hashlib.sha256()
    for name, tensor in sorted(
        {**state.model.state_dict(), **optimizer_tensors(state.model, state.optimizer)}.items()
    ):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    _i, batch = next(iter(parts.loaders.train(parts.plan.epochs[0])))
    found.update(batch.images.contiguous().numpy().tobytes() + batch.indices.tobytes())
    rest = (
        state.scaler.state_dict(),
        state.progress.position,
        state.progress.step,
        state.progress.samples,
    )
    found.update(repr(rest).encode() + torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tuning_leaves_no_trace(digits_root: Path, precision: str) -> None:
    with set_up(config(digits_root, precision), Solo()) as parts:
        epoch = parts.plan.epochs[0]
        for _i, batch in itertools.islice(parts.loaders.train(epoch), 3):
            train_step(parts.state, batch, 0.1, 0.9)
        before = digest(parts)
        lr_range.lr_range_test(parts.state, parts.loaders, epoch, steps=30)
        assert digest(parts) == before
        largest_batch.largest_batch(parts.state, Memory(parts.state, 1e9), 16, 10, most=32)
        assert digest(parts) == before
        for _i, batch in parts.loaders.train(epoch):
            train_step(parts.state, batch, 0.1, 0.9)
        assert digest(parts) != before


def test_the_range_test_trains_as_the_run_would(digits_root: Path, tmp_path: Path) -> None:
    """Weights from a file, only the parts that the first phase trains, a whitened first layer."""
    weights = tmp_path / "w.safetensors"
    torch.manual_seed(9)
    source = build_model(config(digits_root).model, 10)
    safetensors.torch.save_file(source.state_dict(), weights)
    text = CONFIG.format(root=digits_root, precision="fp32")
    text = text.replace("resnet8_cifar", f"resnet8_cifar, weights: {weights}, freeze: [stem]")
    cfg = parse_config(text.replace("image_size: 24,", "image_size: 24, unfreeze: [stem],"))
    with set_up(cfg, Solo()) as parts:
        tune._start(parts, cfg, Solo())
        before = {k: v.clone() for k, v in parts.state.model.state_dict().items()}
        assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
        for _i, batch in itertools.islice(parts.loaders.train(parts.plan.epochs[0]), 2):
            train_step(parts.state, batch, 0.1, 0.9)
        after = parts.state.model.state_dict()
        moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
        assert moved == {"stages", "classifier"}
    quick = cfg.model_copy(update={"model": Model(name="airbench94")})
    with set_up(quick.model_copy(update={"phases": quick.phases[:1]}), Solo()) as parts:
        kernels = parts.state.model.whitening.weight.clone()  # type: ignore[union-attr, operator]
        tune._start(parts, quick, Solo())
        found = parts.state.model.whitening.weight  # type: ignore[union-attr]
        assert not torch.equal(found, kernels)  # type: ignore[arg-type]


def test_memory_of_a_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"memory.max": "5000000", "memory.current": "2000000"}
    read = Path.read_text

    def fake(path: Path) -> str:
        return limits[path.name] if path.name in limits else read(path)

    monkeypatch.setattr(Path, "read_text", fake)
    assert largest_batch.free_memory() == 3_000_000
    limits["memory.max"] = "max"
    assert largest_batch.free_memory() > 100e6


class Curve:
    """Stands in for training: losses as a function of the step."""

    def __init__(self, losses: list[float]) -> None:
        self._losses = iter(losses)
        self.rates: list[float] = []

    def __call__(self, _state: object, _batch: object, lr: float, _momentum: float) -> torch.Tensor:
        self.rates.append(lr)
        return torch.tensor([next(self._losses) * 8, 0.0, 0.0, 8.0])


@pytest.fixture
def parts(digits_root: Path) -> Iterator[Parts]:
    with set_up(config(digits_root), Solo()) as made:
        gc.collect()
        gc.freeze()  # the search collects garbage after each trial: 0.4 s among all that is loaded
        yield made
        gc.unfreeze()


def run_curve(
    parts: Parts, losses: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[lr_range.LRRange, Curve]:
    curve = Curve(losses)
    monkeypatch.setattr(lr_range, "train_step", curve)
    epoch = parts.plan.epochs[0]
    found = lr_range.lr_range_test(
        parts.state, parts.loaders, epoch, lowest=1e-3, highest=1.0, steps=len(losses)
    )
    return found, curve


def test_rates_rise_exponentially_and_the_loss_is_smoothed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps than one epoch has; the average is that of pandas' ewm(alpha=0.02)."""
    losses = np.random.default_rng(0).uniform(1, 2, 60).tolist()
    found, curve = run_curve(parts, losses, monkeypatch)
    assert found.rates == curve.rates == pytest.approx(np.geomspace(1e-3, 1.0, 60).tolist())
    assert found.losses == pytest.approx(losses, rel=1e-6)
    weights = [0.98 ** np.arange(k, -1, -1) for k in range(60)]
    expected = [float(w @ losses[: len(w)] / w.sum()) for w in weights]
    assert found.smoothed == pytest.approx(expected, rel=1e-6)
    assert found.global_batch_size == 32
    assert found.scale == 2.0
    assert lr_range.as_dict(found)["lr_base_steepest"] == pytest.approx(found.steepest / 2)


def test_suggestions_and_the_end_of_the_test(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that falls fastest at step 120, is least at 180 and then explodes."""
    i = np.arange(400)
    losses = 2 - 1.5 / (1 + np.exp(-(i - 120) / 8)) + np.exp((i - 220) / 4)
    found, _curve = run_curve(parts, losses.tolist(), monkeypatch)
    assert len(found.rates) < 260
    assert found.smoothed[-1] > 4 * min(found.smoothed)
    assert found.smoothed[-2] <= 4 * min(found.smoothed)
    fastest = found.rates.index(found.steepest)
    assert 120 <= fastest <= 150  # the average lags behind
    least = int(np.argmin(found.smoothed))
    assert 180 <= least <= 230
    assert found.tenth_of_minimum == pytest.approx(found.rates[least] / 10)


def test_a_loss_that_is_not_finite_ends_the_test(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _curve = run_curve(parts, [2.0] * 25 + [float("nan")] * 25, monkeypatch)
    assert len(found.rates) == 25
    with pytest.raises(TrainingError, match=r"not finite after 3 steps from rate 0\.001"):
        run_curve(parts, [2.0] * 3 + [float("inf")] * 47, monkeypatch)


def test_the_picture_and_the_figures_are_written(digits_root: Path, tmp_path: Path) -> None:
    tune.tune_lr(
        config(digits_root), Solo(), lowest=1e-3, highest=1.0, steps=25, output=tmp_path / "a/b"
    )
    assert (tmp_path / "a/b/lr_range.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a/b/lr_range.json").stat().st_size > 500
    for wrong in ({"lowest": 1.0}, {"highest": 1e-4}, {"steps": 3}, {"lowest": 0.0}):
        options = {"lowest": 1e-3, "highest": 1.0, "steps": 25, **wrong}
        with pytest.raises(ConfigError, match="expected 0 < from < to"):
            tune.tune_lr(config(digits_root), Solo(), output=tmp_path, **options)  # type: ignore[arg-type]


def search(parts: Parts, monkeypatch: pytest.MonkeyPatch, room: int, most: int) -> list[Trial]:
    """A device that holds `room` images."""

    def calibrate(_state: object, batch: lr_range.Batch, **_: object) -> WorkerSpeed:
        if len(batch.labels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return WorkerSpeed(100.0 + len(batch.labels), 0.0)

    monkeypatch.setattr(largest_batch, "calibrate", calibrate)
    memory = Memory(parts.state, 1e12)
    return largest_batch.largest_batch(parts.state, memory, 8, 10, most=most)


def test_the_largest_batch_is_found(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (8, 15, 16, 17, 24, 100, 128, 250, 300):
        trials = search(parts, monkeypatch, room, 4096)
        found = best(trials)
        assert found <= room
        assert room - found < max(16, found // 8 + 8), trials
        assert found % 8 == 0
        assert len(trials) <= 12
        assert [t.images_per_s is not None for t in trials] == [
            t.batch_per_worker <= room for t in trials
        ]
    assert best(search(parts, monkeypatch, 5, 4096)) == 0
    assert best(search(parts, monkeypatch, 500, 100)) == 100


def test_another_fault_is_not_mistaken_for_a_lack_of_memory(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(*_: object, **__: object) -> float:
        raise RuntimeError("a bug")

    monkeypatch.setattr(largest_batch, "calibrate", calibrate)
    with pytest.raises(RuntimeError, match="a bug"):
        largest_batch.largest_batch(parts.state, Memory(parts.state, 1e9), 8, 10, most=64)


def test_memory_of_a_cpu_bounds_the_batch(parts: Parts) -> None:
    """Memory is measured, not exhausted: with four times the memory more images fit."""
    # The first step of a process also loads libraries: that memory is not of the batch.
    largest_batch.calibrate(parts.state, largest_batch.noise(parts.state, 8, 48, 10))
    found = []
    for budget in (60e6, 240e6):
        memory = Memory(parts.state, budget)
        found.append(best(largest_batch.largest_batch(parts.state, memory, 48, 10, most=1024)))
    assert 0 < found[0] < found[1] < 1024


def test_the_tuned_config_is_a_config_whose_rate_follows(digits_root: Path) -> None:
    cfg = config(digits_root)
    trials = {16: [Trial(64, 9.0), Trial(128, None)], 24: [Trial(2000, 9.0)]}
    tuned = parse_config(tune.tuned_config(cfg, trials, 1437, 2))
    assert [phase.batch_per_worker for phase in tuned.phases] == [64, 718]
    plan = make_plan(tuned, 2, 1437)
    assert plan.epochs[0].lr(0) == pytest.approx(0.1 * 2 * 64 / 16)
    grows = Phase(epochs=3, image_size=[16, 28], size_multiple=4)
    growing = tune.tuned_config(cfg.model_copy(update={"phases": [grows]}), trials, 1437, 2)
    assert parse_config(growing).phases[0].batch_per_worker == 718  # the batch of 24 px
    assert yaml.safe_load(tune.tuned_config(cfg, trials, 1437, 2))["lr"]["base"] == 0.1


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mine")
    with pytest.raises(ResourceError, match="exists; name another file"):
        tune.require_new(tmp_path / "c.yaml")
    tune.require_new(tmp_path / "d.yaml")
