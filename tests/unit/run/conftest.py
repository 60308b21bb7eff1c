"""A folder of images of three classes, and a run on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config import object_urls
from hvdtrain.engine.step import State
from hvdtrain.run import object_store
from hvdtrain.train import train
from tests.step_samples import network, state_of
from tests.unit.run.data_runs import COLOURS, config, write
from tests.unit.run.shaky_store import ShakyStore


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


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs such as memory://bucket lead to a `ShakyStore`, which is empty."""
    client = object_urls.Client(ShakyStore.__module__, "ShakyStore", "memory")
    monkeypatch.setitem(object_urls.CLIENTS, "memory", client)
    monkeypatch.setattr(object_store, "PAUSE_S", 0.0)
    monkeypatch.setattr(object_store, "_lower_priority", lambda: None)  # other tests run beside
    ShakyStore.reset()


@pytest.fixture(scope="module")
def state() -> State:
    """A small network that is trained."""
    return state_of(network())
