"""Parts that are frozen at first and trained from a later phase on, in whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import set_up
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.text import plan_text
from hvdtrain.train import train

CONFIG = """
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar, freeze: [stem, stages.0, stages.1]}}
optimizer: {{weight_decay: 0.01}}
lr: {{base: 0.1, warmup: none, schedule: constant}}
phases:
  - {{epochs: 1, image_size: 16, batch_per_worker: 8}}
  - {{epochs: {second}, image_size: 16, batch_per_worker: 8, unfreeze: [stages.1]}}
train: {{ema_decay: 0.9}}
checkpoint: {{keep: 9}}
metrics: {{enabled: false}}
"""


def config(root: Path, second: int = 1, **changes: str) -> Config:
    text = CONFIG.format(root=root, second=second)
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse_config(text)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = safetensors.torch.load_file(checkpoint / "model.safetensors")
    return loaded


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """The parts in which any weight differs: stem, stages.0, …, classifier."""
    names = (name for name in one if not torch.equal(one[name], other[name]))
    return {
        ".".join(n.split(".")[:2]) if n.startswith("stages") else n.split(".")[0] for n in names
    }


def test_parts_are_trained_from_their_phase_on(small_root: Path, tmp_path: Path) -> None:
    """Frozen weights do not change, not even by decay or batch norm.

    A run resumed in the second phase ends with the same weights.
    """
    cfg = config(small_root, 2)
    with set_up(cfg, Solo()) as parts:
        start = {name: t.clone() for name, t in parts.state.model.state_dict().items()}
    train(cfg, Solo(), run_dir=tmp_path / "whole")
    first, second, last = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert moved(start, weights(first)) == {"stages.2", "classifier"}
    assert moved(weights(first), weights(second)) == {"stages.1", "stages.2", "classifier"}
    expected = weights(last)
    shutil.rmtree(last)  # now it is a run that was stopped in its second phase
    (tmp_path / "whole" / "summary.json").unlink()
    train(cfg, Solo(), resume=str(tmp_path / "whole"))
    assert moved(expected, weights(last)) == set()


def test_a_part_is_frozen_from_a_phase_on(small_root: Path, tmp_path: Path) -> None:
    """As airbench94 freezes its whitening layer; here with batch norms, and freed again at the end."""
    text = CONFIG.format(root=small_root, second=1).replace(
        "freeze: [stem, stages.0, stages.1]", "freeze: [stem]"
    )
    text = text.replace("unfreeze: [stages.1]", "freeze: [stages], unfreeze: [stem, stages.2]")
    last = "\n  - {epochs: 1, image_size: 16, batch_per_worker: 8, unfreeze: [stages.0]}\ntrain:"
    cfg = parse_config(text.replace("\ntrain:", last))
    with set_up(cfg, Solo()) as parts:
        start = {name: t.clone() for name, t in parts.state.model.state_dict().items()}
    train(cfg, Solo(), run_dir=tmp_path / "run")
    first, second, third = sorted((tmp_path / "run" / "checkpoints").iterdir())
    stages = {"stages.0", "stages.1", "stages.2"}
    assert moved(start, weights(first)) == {*stages, "classifier"}
    assert moved(weights(first), weights(second)) == {"stem", "stages.2", "classifier"}
    assert moved(weights(second), weights(third)) == {"stem", *stages, "classifier"} - {"stages.1"}
    shown = plan_text(cfg, make_plan(cfg, 1, 22))
    assert "stem; stages from epoch 1; stem, stages.2 trained from epoch 1; stages.0 tr" in shown


def test_wrong_parts_are_told(small_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"phases\.1\.unfreeze: classifier is not frozen: model"):
        config(small_root, **{"unfreeze: [stages.1]": "unfreeze: [classifier]"})
    with (
        pytest.raises(
            ConfigError, match=r"phases\.1\.freeze: stem, stages, clas.*: nothing is left"
        ),
        set_up(
            config(small_root, **{"unfreeze: [stages.1]": "freeze: [stem, stages, classifier]"}),
            Solo(),
        ),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"stages\.1\.7: no such part"),
        set_up(config(small_root, **{"unfreeze: [stages.1]": "unfreeze: [stages.1.7]"}), Solo()),
    ):
        pass


def test_the_plan_shows_what_is_frozen(small_root: Path) -> None:
    cfg = config(small_root)
    text = plan_text(cfg, make_plan(cfg, 1, 22))
    assert "stem, stages.0, stages.1; stages.1 trained from epoch 1" in text
