"""Scaling efficiency: its baseline, measured or from a file, and the file that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Comm as CommConfig
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.engine.calibrate import WorkerSpeed
from hvdtrain.engine.step import StepSettings
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.run import efficiency
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.telemetry.lost_time import CAUSES
from hvdtrain.telemetry.meter import BadCounts, Interval
from hvdtrain.telemetry.reports import RunScaling, Scaling
from tests.made_reports import MEASURED


class Two(Solo):
    """Rank 0 of two; the other one measured half the speed."""

    size = 2

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        return torch.stack([row, row / 2])

    def gather_text(self, text: str) -> list[str]:
        return [text, ""]


def run(root: Path, ranks: Solo, **settings: Any) -> Any:
    """The part of a run that Efficiency needs."""
    cfg = Config(phases=[Phase(epochs=1)], **settings)
    state = SimpleNamespace(
        settings=StepSettings(torch.device("cpu")), reducer=SimpleNamespace(step_bytes=1e6)
    )
    hosts = ["a", "b"][: ranks.size]
    return SimpleNamespace(cfg=cfg, comm=ranks, state=state, hosts=hosts, paths=RunPaths(root))


EPOCH: Any = SimpleNamespace(phase_index=0, image_size=32)
BATCH = SimpleNamespace(labels=torch.zeros(10))


def interval(seconds: float, link: float | None = None) -> Interval:
    """Four steps of two ranks with 10 images each."""
    step_s = np.full((2, 4), seconds / 4)
    zero = np.zeros((2, 4))
    speeds = np.array([link or 0.0, 0.0])
    measured, bad = replace(MEASURED, samples=80.0), BadCounts(0, 0)
    return Interval(measured, bad, False, [], step_s, zero, zero, speeds, np.zeros(2))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that were calibrated; a single worker trains 100 images/s."""
    calls: list[Any] = []

    def calibrate(_state: object, batch: Any) -> WorkerSpeed:
        calls.append(batch)
        return WorkerSpeed(100.0, 0.06)

    monkeypatch.setattr(efficiency, "calibrate", calibrate)
    return calls


def test_efficiency_against_what_was_measured(tmp_path: Path, measured: list[Any]) -> None:
    found = Efficiency(run(tmp_path, Two()))
    for _ in range(2):
        found.enter(EPOCH, BATCH)
    assert len(measured) == 1  # once for each size
    # Of two ranks the faster one: 80 images take two of them 0.4 s.
    report = found.add(interval(0.5, link=1.5e7))
    assert report.efficiency == pytest.approx(0.8)
    assert report.lost["other"] == pytest.approx(0.2)
    assert report.cause == "other"
    # 1 MB at 15 MB/s: 0.067 s, of which backward hides 0.06 of 0.1.
    assert report.efficiency_ceiling == pytest.approx(0.1 / (0.04 + 1 / 15))
    # Faster than a link of 1 MB/s allows, so the gradients must take another link.
    assert found.add(interval(0.5, link=1e6)).efficiency_ceiling is None
    assert found.add(interval(0.4)).efficiency_ceiling is None  # no speed known
    overall = found.overall()
    assert overall.efficiency == pytest.approx(1.2 / 1.4)
    expected = dict.fromkeys(CAUSES, 0.0) | {"other": pytest.approx(0.2 / 1.4)}
    assert overall.lost == expected


def test_the_speed_of_the_link_can_be_configured(tmp_path: Path, measured: list[Any]) -> None:
    configured = run(tmp_path, Two(), comm=CommConfig(link_gbit=0.08))  # 10 MB/s
    efficiency = Efficiency(configured)
    efficiency.enter(EPOCH, BATCH)
    assert efficiency.add(interval(0.6, link=1e12)).efficiency_ceiling == pytest.approx(0.1 / 0.14)
    configured.hosts = ["a", "a"]
    assert efficiency.add(interval(0.5)).efficiency_ceiling is None


def test_one_rank_has_no_efficiency(tmp_path: Path, measured: list[Any]) -> None:
    found = Efficiency(run(tmp_path, Solo()))
    found.enter(EPOCH, BATCH)
    assert found.add(interval(1.0)) == Scaling()
    assert found.overall() == RunScaling()
    assert not measured


def test_a_stored_calibration_is_used(tmp_path: Path, measured: list[Any]) -> None:
    first = Efficiency(run(tmp_path, Two()))
    first.enter(EPOCH, BATCH)
    stored = tmp_path / "calibration.json"
    text = stored.read_text().replace("100.0", "50.0")
    stored.write_text(text)
    other = tmp_path / "other"
    other.mkdir()
    settings = {"metrics": Metrics(calibration=str(stored))}
    second = Efficiency(run(other, Two(), **settings))
    second.enter(EPOCH, BATCH)
    assert len(measured) == 1
    assert second.add(interval(1.0)).efficiency == pytest.approx(0.8)
    second.enter(SimpleNamespace(phase_index=0, image_size=64), BATCH)  # type: ignore[arg-type]
    assert len(measured) == 2  # not in the file
    assert len(json.loads((other / "calibration.json").read_text())["entries"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), "cannot be read: No such file or directory"),
        (lambda file: file.write_text("{}"), "expected the calibration.json of a run"),
        (lambda file: file.write_text("JFIF"), "expected the calibration.json of a run"),
        (
            lambda file: file.write_text(file.read_text().replace('"batch": 10', '"batch": "x"')),
            "expected the calibration.json of a run",
        ),
        (
            lambda file: file.write_text(file.read_text().replace("100.0", "0.0")),
            "expected the calibration.json of a run",
        ),
        (
            lambda file: file.write_text(file.read_text().replace("100.0", '"100.0"')),
            "expected the calibration.json of a run",
        ),
        (
            lambda file: file.write_text(file.read_text().replace("fp32", "bf16")),
            "made for {'model': 'resnet50', 'precision': 'bf16', 'device': 'cpu'}, this run has",
        ),
    ],
)
def test_a_calibration_that_cannot_be_used(
    tmp_path: Path, measured: list[Any], change: Any, message: str
) -> None:
    Efficiency(run(tmp_path, Two())).enter(EPOCH, BATCH)
    stored = tmp_path / "calibration.json"
    change(stored)
    with pytest.raises(ResourceError) as error:
        Efficiency(run(tmp_path, Two(), metrics=Metrics(calibration=str(stored))))
    assert str(error.value).startswith(f"rank 0: metrics.calibration: {stored}: ")
    assert message in str(error.value)
