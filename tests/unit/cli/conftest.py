"""A command line that is typed, and a run with checkpoints."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.cli.main import main
from hvdtrain.engine.step import train_step
from tests.step_samples import images, network, state_of
from tests.unit.cli.ckpt_runs import Typed, save


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types `hvdtrain ckpt WORDS`: exit code, standard output, standard error."""

    def type_(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hvdtrain", "ckpt", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return type_


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints: the furthest is the first written."""
    root = tmp_path_factory.mktemp("made") / "run"
    state = state_of(network(norm=True))
    config: dict[str, Any] = {"lr": {"base": 0.1}, "phases": [{"epochs": 4}]}
    for number, epoch in enumerate((9, 2, 3)):
        if epoch == 3:
            config = {"lr": {"base": 0.2}, "phases": [{"epochs": 4}, {"epochs": 1}]}
        save(root, state, epoch, 20 * number, config=config)
        train_step(state, images(6, number), 0.1, 0.9)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))
