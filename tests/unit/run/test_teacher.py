"""`train.teacher` in a run: which weights it takes, what it refuses, and stops in mid-epoch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.teacher import load_teacher
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.run.evaluation import evaluate_run
from hvdtrain.train import train
from tests.unit.run.data_runs import config, notes
from tests.unit.run.test_weights import Killed, weights

CPU = torch.device("cpu")


def student(trained: Path, *settings: str) -> Config:
    text = yaml.safe_dump(config(trained, 2).model_dump())
    teacher = [f"train.teacher.weights={trained}/teacher", "train.teacher.temperature=2"]
    more = ["model.name=resnet8_gn", "seed=7", "train.compute_threads=1", *teacher, *settings]
    return parse_config(text, overrides=more)


@pytest.fixture
def trained(trained: Path) -> Path:
    """A run, `teacher`."""
    (trained / "run").rename(trained / "teacher")
    return trained


def test_a_stopped_run_learns_the_same_from_it_and_refuses_another(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hvdtrain.train as loop

    really, run, whole = loop.train_step, trained / "run", trained / "whole"
    cfg = student(trained, "checkpoint.every_steps=1")
    train(cfg, Solo(), run_dir=whole)

    def killed(*args: Any, **kwargs: Any) -> torch.Tensor:
        if args[0].progress.step == 4:
            raise Killed
        return really(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killed)
        with pytest.raises(Killed):
            train(cfg, Solo(), run_dir=run)
    [said] = (text for text in notes(trained) if text.startswith("train.teacher: resnet8_cifar, "))
    labels = read_meta(list_checkpoints(run / "checkpoints")[0])["labels"]
    sha256 = labels["teacher (sha256 of its weights)"]
    assert f"sha256 {sha256[:12]} " in said

    file = list_checkpoints(trained / "teacher/checkpoints")[0] / "model.safetensors"
    [kept] = [shutil.copytree(trained / "teacher", trained / "kept")]
    train(config(trained, 2), Solo(), resume=str(trained / "teacher"))  # it goes on learning
    with pytest.raises(CheckpointError, match=r"made by another run: its teacher \(sha256 of its"):
        train(cfg, Solo(), resume=str(run))
    with pytest.raises(ConfigError, match=r"train\.teacher\.weights .*/teacher → .*/kept"):
        train(student(trained, f"train.teacher.weights={kept}"), Solo(), resume=str(run))
    shutil.rmtree(trained / "teacher")
    shutil.copytree(kept, trained / "teacher")
    train(cfg, Solo(), resume=str(run))
    last = "checkpoints/e0002-s0000000000"
    assert torch.equal(weights(run / last), weights(whole / last))
    assert file.exists()
    shutil.rmtree(trained / "teacher")
    evaluate_run(run, [], Solo())  # needs no teacher


def test_what_the_weights_are_of(trained: Path) -> None:
    """A run, a checkpoint, and the file in it are the same teacher; others name their network."""
    checkpoint = list_checkpoints(trained / "teacher/checkpoints")[0]
    file = checkpoint / "model.safetensors"
    shutil.copy(file, trained / "alone.safetensors")
    classes = ["ant", "bee", "cat"]

    def load(path: Path, *settings: str, classes: list[str] | None = classes) -> Any:
        cfg = student(trained, f"train.teacher.weights={path}", *settings)
        return load_teacher(cfg, Solo(), CPU, 3, classes)

    named = "train.teacher.model=resnet8_cifar"
    alone = load(trained / "alone.safetensors", named)
    found = [load(path) for path in (trained / "teacher", checkpoint, file)]
    assert {teacher.sha256 for teacher in (*found, alone)} == {alone.sha256}
    tensors = alone.network.state_dict()
    for key, expected in safetensors.torch.load_file(file).items():
        assert torch.equal(tensors[key], expected) or key.endswith("num_batches_tracked"), key
    assert not any(p.requires_grad for p in alone.network.parameters())
    assert not any(module.training for module in alone.network.modules())
    turned = load(file, classes=["cat", "ant", "bee"]).network
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(turned(pixels), alone.network(pixels)[:, [2, 0, 1]])
    refused: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((trained / "alone.safetensors",), {}, r"model: not set, and .* does not say it"),
        ((file, "train.teacher.model=resnet18"), {}, r"resnet18, but .* is of resnet8_cifar"),
        ((file,), {"classes": ["ant", "bee", "cow"]}, r"other classes .*missing cow; extra cat"),
        ((file, "data.mean=[0.5, 0.5, 0.5]"), {}, r"was trained with data\.mean .* has \[0\.5"),
        ((trained / "gone",), {}, r"train\.teacher\.model: not set"),
        ((trained / "gone", named), {}, r"train\.teacher\.weights: .*gone: No such file"),
        ((trained / "alone.safetensors", "train.teacher.model=resnet18"), {}, "another model"),
        ((trained / "alone.safetensors", "train.teacher.model=resne"), {}, "unknown model"),
    ]
    for arguments, more, line in refused:
        with pytest.raises((CheckpointError, ConfigError), match=line):
            load(*arguments, **more)
    with pytest.raises(CheckpointError, match=r"made for other classes: the file has 64 → 3"):
        load_teacher(
            student(trained, f"train.teacher.weights={trained}/alone.safetensors", named),
            *(Solo(), CPU, 4, None),
        )
