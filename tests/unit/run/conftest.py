"""A folder of images of three classes, and a run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.train import train
from tests.unit.run.data_runs import COLOURS, config, write


@pytest.fixture
def page() -> None:
    """Runs of the test write `report.html`."""


@pytest.fixture(autouse=True)
def without_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other runs do not: matplotlib takes longer than their training."""
    if "page" not in request.fixturenames:
        monkeypatch.setattr("hvdtrain.train.write_page", lambda run: None)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write(tmp_path / "train", list(COLOURS))
    write(tmp_path / "val", list(COLOURS), 2, 10)
    return tmp_path


@pytest.fixture
def trained(work: Path) -> Path:
    train(config(work), Solo(), run_dir=work / "run")
    return work
